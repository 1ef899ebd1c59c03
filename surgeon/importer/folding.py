"""Arithmetic on numbers that are known beforehand, so that shapes computed in the file keep the batch open."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from surgeon.errors import ConversionError
from surgeon.importer.registry import Context, Numbers, folded, given, required

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Mod": np.mod, "Pow": np.power},
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


@folded("Div")
def divide(a: Numbers, b: Numbers) -> Any:
    whole = not any(isinstance(number, (float, torch.SymFloat)) for value in (a, b) for number in value.flat) and not (
        a.dtype.kind == "f" or b.dtype.kind == "f"
    )
    return a // b if whole else a / b


@folded("Min")
def minimum(*inputs: Numbers) -> Any:
    return functools.reduce(np.minimum, inputs)


@folded("Max")
def maximum(*inputs: Numbers) -> Any:
    return functools.reduce(np.maximum, inputs)


@folded("Cast")
def cast(x: Numbers, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    casts: dict[int, Callable[[Any], Any]] = {1: _real, 11: _real, 6: _integer, 7: _integer, 9: bool}
    if to not in casts:
        raise ConversionError(f"a cast to ONNX's data type {to}", "Give a network in float32")
    return _each(casts[to], x)


def _real(number: Any) -> Any:
    return number * 1.0 if isinstance(number, torch.SymInt) else float(number)


def _integer(number: Any) -> Any:
    if isinstance(number, torch.SymInt):
        return number
    return torch.sym_int(number) if isinstance(number, torch.SymFloat) else int(number)


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


@folded("Slice")
def slice_(
    x: Numbers,
    first: Numbers | None = None,
    last: Numbers | None = None,
    over: Numbers | None = None,
    by: Numbers | None = None,
    *,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> Any:
    begin, end = required(first, starts), required(last, ends)
    chosen = given(over, axes) or list(range(len(begin)))
    steps = given(by, None) or [1] * len(begin)
    cuts = [slice(None)] * x.ndim
    for a, b, axis, step in zip(begin, end, chosen, steps, strict=True):
        cuts[axis] = slice(a, None if step < 0 and b < -x.shape[axis] else b, step)
    return x[tuple(cuts)]


@folded("Squeeze")
def squeeze(x: Numbers, over: Numbers | None = None, *, axes: list[int] | None = None) -> Any:
    chosen = given(over, axes)
    return np.squeeze(x, None if chosen is None else tuple(chosen))


@folded("Unsqueeze")
def unsqueeze(x: Numbers, over: Numbers | None = None, *, axes: list[int] | None = None) -> Any:
    return np.expand_dims(x, tuple(required(over, axes)))


@folded("Reshape")
def reshape(x: Numbers, target: Numbers, *, allowzero: int = 0) -> Any:
    return x.reshape([x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(target.tolist())])


@folded("Expand")
def expand(x: Numbers, target: Numbers) -> Any:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target.tolist())))


@folded("Split")
def split(
    x: Numbers,
    sizes: Numbers | None = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    context: Context,
) -> tuple[Any, ...]:
    lengths = given(sizes, split)
    if lengths is None:
        return tuple(np.array_split(x, context.outputs, axis))
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis))


@folded("Range")
def range_(start: Numbers, limit: Numbers, delta: Numbers) -> Any:
    return np.arange(start.item(), limit.item(), delta.item())


@folded("ReduceProd")
def product(
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
    return np.asarray(np.prod(x, axis=tuple(chosen) if chosen else None, keepdims=bool(keepdims)))
