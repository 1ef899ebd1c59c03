"""Operators that move, repeat or drop values without changing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import Context, Numbers, Value, folded, given, operator, required
from surgeon.network.sizes import is_symbolic


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Numbers:
    sizes = list(x.shape)[slice(start, end)]
    found = np.empty(len(sizes), dtype=object)  # so that NumPy does not convert a symbolic batch
    found[:] = sizes
    return found


def _freed(x: Tensor, sizes: list[Any], context: Context) -> list[Any]:
    """`sizes` with the batch that the file is written for, where it comes first, replaced by the one there is.

    What keeps the length of the first axis keeps its samples apart, whatever their number.
    """
    rows = x.shape[0] if x.dim() else 1
    whole = isinstance(rows, torch.SymInt) or rows == context.batch
    if context.fixed is None or not sizes or not isinstance(sizes[0], int) or not whole:
        return sizes
    return [context.batch, *sizes[1:]] if sizes[0] == context.fixed else sizes


@operator("Reshape")
def reshape(x: Tensor, target: Numbers, *, allowzero: int = 0, context: Context) -> Tensor:
    sizes = _freed(x, target.tolist(), context)
    if not allowzero:
        sizes = [x.shape[i] if isinstance(s, int) and s == 0 else s for i, s in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    tail = x.flatten(axis) if axis < x.dim() else x.unsqueeze(-1)
    return tail.flatten(0, axis - 1)


@operator("Squeeze")
def squeeze(x: Tensor, over: Numbers | None = None, *, axes: list[int] | None = None) -> Tensor:
    """Without axes, all axes of length 1 but the batch."""
    chosen = given(over, axes)
    if chosen is None:
        chosen = [axis for axis, length in enumerate(x.shape) if isinstance(length, int) and length == 1]
    return x.squeeze(chosen)


@operator("Unsqueeze")
def unsqueeze(x: Tensor, over: Numbers | None = None, *, axes: list[int] | None = None) -> Tensor:
    chosen = required(over, axes)
    for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(perm or list(reversed(range(x.dim()))))


@operator("Expand")
def expand(x: Tensor, target: Numbers, *, context: Context) -> Tensor:
    sizes = _freed(x, target.tolist(), context)
    missing = max(x.dim() - len(sizes), 0)
    sizes = [1] * missing + sizes
    added = len(sizes) - x.dim()
    return x.expand([-1 if i >= added and isinstance(s, int) and s == 1 else s for i, s in enumerate(sizes)])


@operator("Tile")
def tile(x: Tensor, repeats: Numbers) -> Tensor:
    return x.repeat(repeats.tolist())


@operator("Concat")
def concat(*inputs: Tensor, axis: int, context: Context) -> Tensor:
    """A value with a batch of 1 in a file of batch 1 is expanded to all samples: a class token, coordinates."""
    single = [isinstance(x.shape[0], int) and x.shape[0] == 1 for x in inputs]
    if context.fixed == 1 and axis % inputs[0].dim() and not all(single):
        sizes = [[context.batch if one else -1, *x.shape[1:]] for x, one in zip(inputs, single, strict=True)]
        inputs = tuple(x.expand(size) for x, size in zip(inputs, sizes, strict=True))
    return torch.cat(inputs, axis)


@folded("Split")
@operator("Split")
def split(
    x: Value,
    sizes: Numbers | None = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    context: Context,
) -> tuple[Value, ...]:
    """Without lengths, pieces of equal length, of which the last may be shorter."""
    lengths = given(sizes, split)
    if lengths is None:
        longest = -(-x.shape[axis] // context.outputs)
        lengths = [longest] * (context.outputs - 1)
        lengths += [x.shape[axis] - sum(lengths)]
    if isinstance(x, Tensor):
        return torch.split(x, lengths, axis)
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis))


@folded("Slice")
@operator("Slice")
def slice_(
    x: Value,
    first: Numbers | None = None,
    last: Numbers | None = None,
    over: Numbers | None = None,
    by: Numbers | None = None,
    *,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> Value:
    """Attributes before opset 10, inputs since. Indices count as in Python, negative steps included."""
    begin, end = required(first, starts), required(last, ends)
    chosen = given(over, axes) or range(len(begin))
    steps = given(by, None) or [1] * len(begin)
    for a, b, axis, step in zip(begin, end, chosen, steps, strict=True):
        cut = slice(a, b, step)
        if isinstance(x, Tensor) and step < 0:
            x = x.index_select(axis, torch.arange(*cut.indices(x.shape[axis])))
        else:
            x = x[(slice(None),) * (axis % x.ndim) + (cut,)]
    return x


@operator("Size")
def size(x: Tensor) -> Numbers:
    found = np.empty((), dtype=object)
    found[()] = x.numel()
    return found


@operator("Trilu")
def trilu(x: Tensor, k: Numbers | None = None, *, upper: int = 1) -> Tensor:
    """The values on and above (or below) the k-th diagonal, zeros elsewhere."""
    rows, columns = (torch.arange(length) for length in x.shape[-2:])
    above = columns - rows.unsqueeze(1) - (0 if k is None else k.item())
    return x.masked_fill(above < 0 if upper else above > 0, 0.0)


@operator("ConstantOfShape")
def constant_of_shape(sizes: Numbers, *, value: Numbers | None = None, context: Context) -> Tensor | Numbers:
    fill = 0.0 if value is None else value[0].item()
    numbers = sizes.tolist()
    if not isinstance(fill, float) and all(isinstance(number, int) for number in numbers):
        return np.full(numbers, fill)
    return torch.full(numbers, fill, dtype=context.dtype if isinstance(fill, float) else None)


MIRRORED: dict[str, Callable[[Any, Any], Any]] = {
    "reflect": lambda place, length: length - 1 - abs(length - 1 - place % max(2 * (length - 1), 1)),
    "edge": lambda place, length: place.clip(0, length - 1),
    "wrap": lambda place, length: place - place // length * length,
}
"""Source index of each position beyond the edges of an axis, by mode; for NumPy arrays and tensors."""

TORCHS = {"reflect": "reflect", "edge": "replicate"}
"""PyTorch's names of its modes."""


@operator("Pad")
def pad(
    x: Tensor,
    amounts: Numbers | None = None,
    constant: Numbers | None = None,
    over: Numbers | None = None,
    *,
    mode: str = "constant",
    pads: list[int] | None = None,
    value: float = 0.0,
) -> Tensor:
    """`amounts` holds the paddings before all axes, then those after; attributes before opset 11, inputs since."""
    both = required(amounts, pads)
    axes = [axis % x.dim() for axis in given(over, None) or range(x.dim())]
    begin = dict(zip(axes, both[: len(axes)], strict=True))
    end = dict(zip(axes, both[len(axes) :], strict=True))
    order = [side for axis in reversed(range(x.dim())) for side in (begin.get(axis, 0), end.get(axis, 0))]
    while order and not any(map(_may_pad, order[-2:])):
        del order[-2:]
    if not order:
        return x
    if mode == "constant":
        fill = float(constant) if constant is not None and constant.size else value
        return F.pad(x, order, value=fill)
    if mode not in MIRRORED:
        raise ConversionError(f"padding mode {mode}", f"Use constant, {', '.join(MIRRORED)}")
    if mode in TORCHS and _is_torchs(x, order, mode):
        spatial = order + [0] * (2 * x.dim() - 4 - len(order))
        return F.pad(x, spatial, mode=TORCHS[mode])
    for axis in axes:
        if _may_pad(begin[axis]) or _may_pad(end[axis]):
            x = x.index_select(axis, _mirrored(mode, x.shape[axis], begin[axis], end[axis]))
    return x


def _may_pad(side: Any) -> bool:
    """Whether a padding is nonzero. Comparing a symbol with zero would specialise it."""
    return is_symbolic(side) or side != 0


def _is_torchs(x: Tensor, order: list[Any], mode: str) -> bool:
    """Whether PyTorch pads that way: spatial axes only, no cropping, and enough values to reflect."""
    if not 3 <= x.dim() <= 5 or len(order) > 2 * x.dim() - 4 or any(side < 0 for side in order):
        return False
    lengths = [x.shape[-1 - at // 2] for at in range(len(order))]
    return mode == "edge" or all(side < length for side, length in zip(order, lengths, strict=True))


def _mirrored(mode: str, length: Any, begin: Any, end: Any) -> Tensor:
    """The source index of each position of a padded axis."""
    if is_symbolic(length, begin, end):
        return MIRRORED[mode](torch.arange(-begin, length + end), length)
    return torch.from_numpy(MIRRORED[mode](np.arange(-begin, length + end), length))


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)
