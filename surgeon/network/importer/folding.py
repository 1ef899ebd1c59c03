"""Arithmetic on numbers known at capture, so that shapes computed in the file keep the batch free."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import FLOATING, Numbers, Value, folded, given, required

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Pow": np.power},
    **{"Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal},
    **{"GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or},
}


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def binary(a: Numbers, b: Numbers) -> Any:
        return function(a, b)

    return binary


for name, function in BINARY.items():
    folded(name)(_binary(function))


@folded("Identity")
def identity(x: Numbers) -> Numbers:
    return x


@folded("Abs")
def absolute(x: Numbers) -> Any:
    return np.abs(x)


@folded("Neg")
def negative(x: Numbers) -> Any:
    return -x


@folded("Not")
def logical_not(x: Numbers) -> Any:
    return np.logical_not(x)


@folded("Sqrt")
def square_root(x: Numbers) -> Any:
    return np.sqrt(x.astype(np.float32))


@folded("Floor")
def floor(x: Numbers) -> Any:
    return _each(math.floor, x)


@folded("Ceil")
def ceil(x: Numbers) -> Any:
    return _each(math.ceil, x)


def _whole(*values: Numbers) -> bool:
    return not any(
        value.dtype.kind == "f" or any(isinstance(number, (float, torch.SymFloat)) for number in value.flat)
        for value in values
    )


def _quotient(a: Any, b: Any) -> Any:
    """Integer division rounds towards zero; Python's rounds down."""
    return a // b if (a < 0) == (b < 0) else -(-a // b)


@folded("Div")
def divide(a: Numbers, b: Numbers) -> Any:
    return np.frompyfunc(_quotient, 2, 1)(a, b) if _whole(a, b) else a / b


@folded("Mod")
def mod(a: Numbers, b: Numbers, *, fmod: int = 0) -> Any:
    """The remainder has the divisor's sign, or with `fmod` the dividend's."""
    if not fmod:
        return np.mod(a, b)
    return a - b * divide(a, b) if _whole(a, b) else np.fmod(a, b)


@folded("Min")
def minimum(*inputs: Numbers) -> Any:
    return functools.reduce(np.minimum, inputs)


@folded("Max")
def maximum(*inputs: Numbers) -> Any:
    return functools.reduce(np.maximum, inputs)


@folded("Cast")
def cast(x: Numbers, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    casts: dict[int, Callable[[Any], Any]] = {
        **dict.fromkeys(FLOATING, _real),
        **dict.fromkeys((TensorProto.INT32, TensorProto.INT64), _integer),
        TensorProto.BOOL: bool,
    }
    if to not in casts:
        raise ConversionError(f"a cast to {TensorProto.DataType.Name(to).lower()}", "Give a network in float32")
    return _each(casts[to], x)


def _real(number: Any) -> Any:
    if not isinstance(number, torch.SymInt):
        return float(number)
    real = torch.sym_float(number)
    real.whole = number  # type: ignore[attr-defined]  # torch.export could not recover the integer
    return real


def _integer(number: Any) -> Any:
    if isinstance(number, torch.SymInt):
        return number
    if isinstance(number, torch.SymFloat):
        return number.whole if hasattr(number, "whole") else torch.sym_int(number)
    return int(number)


def _each(function: Callable[[Any], Any], x: Numbers) -> Numbers:
    found = np.empty(x.shape, dtype=object)
    for place in np.ndindex(x.shape):
        found[place] = function(x[place])
    return found


@folded("Where")
def where(condition: Numbers, a: Numbers, b: Numbers) -> Any:
    return np.where(condition.astype(bool), a, b)


@folded("Gather")
def gather(x: Numbers, indices: Numbers, *, axis: int = 0) -> Any:
    return np.take(x, indices.astype(np.int64), axis)


@folded("Concat")
def concat(*inputs: Numbers, axis: int) -> Any:
    return np.concatenate(inputs, axis)


@folded("Squeeze")
def squeeze(x: Numbers, over: Numbers | None = None, *, axes: list[int] | None = None) -> Any:
    chosen = given(over, axes)
    return np.squeeze(x, None if chosen is None else tuple(chosen))


@folded("Transpose")
def transpose(x: Numbers, *, perm: list[int] | None = None) -> Numbers:
    return np.transpose(x, perm)


@folded("Unsqueeze")
def unsqueeze(x: Numbers, over: Numbers | None = None, *, axes: list[int] | None = None) -> Any:
    return np.expand_dims(x, tuple(required(over, axes)))


@folded("Reshape")
def reshape(x: Numbers, target: Numbers, *, allowzero: int = 0) -> Any:
    return x.reshape([x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(target.tolist())])


@folded("Expand")
def expand(x: Numbers, target: Numbers) -> Any:
    if any(isinstance(number, torch.SymInt) for number in target.flat):
        return NotImplemented
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target.tolist())))


@folded("Range")
def range_(start: Numbers, limit: Numbers, delta: Numbers) -> Value:
    """Numbers; a tensor if the length depends on the batch."""
    first, last, step = start.item(), limit.item(), delta.item()
    if any(isinstance(number, torch.SymInt) for number in (first, last, step)):
        return torch.arange(first, last, step)
    return np.arange(first, last, step)


@folded("NonZero")
def nonzero(x: Numbers) -> Numbers:
    return np.stack(np.nonzero(x))


def _reduction(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def reduction(
        x: Numbers,
        over: Numbers | None = None,
        *,
        axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Any:
        chosen = given(over, axes)
        if not chosen and noop_with_empty_axes:
            return x
        return np.asarray(reduce(x, axis=tuple(chosen) if chosen else None, keepdims=bool(keepdims)))

    return reduction


REDUCTIONS: dict[str, Callable[..., Any]] = {
    **{"ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min},
}
for name, reduce in REDUCTIONS.items():
    folded(name)(_reduction(reduce))
