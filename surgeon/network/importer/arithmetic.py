"""Pointwise operators, comparisons, matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import FLOATING, Context, Numbers, Value, as_tensor, operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    **{"Abs": torch.abs, "Neg": torch.neg, "Sign": torch.sign, "Reciprocal": torch.reciprocal, "Sqrt": torch.sqrt},
    **{"Exp": torch.exp, "Log": torch.log, "Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil},
    **{"Round": torch.round, "Not": torch.logical_not, "IsNaN": torch.isnan},
    **{"Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos},
    **{"Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh},
    **{"Atanh": torch.atanh, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Softplus": F.softplus},
    **{"Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish},
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "MatMul": torch.matmul},
    **{"Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "LessOrEqual": torch.le, "GreaterOrEqual": torch.ge},
    **{"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor},
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def unary(x: Tensor) -> Tensor:
        return function(x)

    return unary


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def binary(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return binary


for name, function in UNARY.items():
    operator(name)(_unary(function))
for name, combine in BINARY.items():
    operator(name)(_binary(combine))


@operator("Div")
def div(a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


@operator("Pow")
def power(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, exponent)


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Max")
def maximum(*inputs: Value, context: Context) -> Tensor:
    """max(x, 0) is called as a ReLU, so that it is a gate."""
    data = [value for value in inputs if isinstance(value, Tensor)]
    numbers = [value for value in inputs if not isinstance(value, Tensor)]
    zero = [value.size == 1 and not value.any() and value.ndim <= data[0].dim() for value in numbers]
    if len(data) == 1 and zero and all(zero):
        return torch.relu(data[0])
    tensors = [value if isinstance(value, Tensor) else as_tensor(value, context.dtype) for value in inputs]
    return functools.reduce(torch.maximum, tensors)


@operator("Min")
def minimum(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, inputs)


@operator("Sum")
def total(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs)


@operator("Mean")
def mean(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


@operator("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up", context: Context) -> Tensor:
    """Casts to any floating-point type cast to the precision that the network runs in."""
    whole: dict[int, torch.dtype] = {
        **{TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8, TensorProto.INT32: torch.int32},
        **{TensorProto.INT64: torch.int64, TensorProto.BOOL: torch.bool},
    }
    if to in FLOATING:
        return x.to(context.dtype)
    if to not in whole:
        raise ConversionError(f"a cast to {TensorProto.DataType.Name(to).lower()}", "Give a network in float32")
    return x.to(whole[to])


@operator("IsInf")
def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    infinite = torch.isinf(x)
    if not detect_negative:
        infinite = infinite & (x > 0)
    return infinite if detect_positive else infinite & (x < 0)


@operator("CastLike")
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(target.dtype)


@operator("Dropout")
def dropout(
    x: Tensor, rate: Numbers | None = None, training: Numbers | None = None, *, ratio: float = 0.5, seed: int = 0
) -> tuple[Tensor]:
    if training is not None and bool(training):
        raise ConversionError("dropout in training mode", "Export the network in evaluation mode")
    return (x,)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    a = a.t() if transA else a
    plain = alpha == 1.0 and beta == 1.0
    if plain and (c is None or (c.dim() == 1 and c.shape[0] == b.shape[0 if transB else 1])):
        return F.linear(a, b if transB else b.t(), c)
    product = torch.matmul(a, b.t() if transB else b)
    product = product if alpha == 1.0 else alpha * product
    return product if c is None else product + (c if beta == 1.0 else beta * c)


@operator("Einsum")
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *inputs)
