"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import Numbers, given, operator
from surgeon.network.importer.windows import global_max_pool

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Over all spatial axes it becomes a max pool: PyTorch's exporter writes an adaptive max pool to 1 that way."""
    if sorted(axes) != list(range(2, x.dim())) or not 3 <= x.dim() <= 5 or not x.is_floating_point():
        return x.amax(axes, keepdim=keep)
    pooled = global_max_pool(x)
    return pooled if keep else pooled.reshape(x.shape[:2])


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": _largest,
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


def _reduction(reduce: Reduction) -> Callable[..., Tensor]:
    def reduction(
        x: Tensor,
        over: Numbers | None = None,
        *,
        axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        """`axes` is an attribute in older opsets and an input in newer ones; default: all axes."""
        chosen = given(over, axes)
        if not chosen and noop_with_empty_axes:
            return x
        return reduce(x, [axis % x.dim() for axis in chosen or range(x.dim())], bool(keepdims))

    return reduction


for name, reduce in REDUCTIONS.items():
    operator(name)(_reduction(reduce))


@operator("CumSum")
def cumulative_sum(x: Tensor, axis: Numbers, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Cumulative sums, optionally in reverse or without the element itself."""
    over = int(axis.item())
    sums = torch.cumsum(x.flip(over) if reverse else x, over)
    sums = sums.flip(over) if reverse else sums
    return sums - x if exclusive else sums


@operator("ArgMax")
def argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _first_index(torch.argmax(x, axis, bool(keepdims)), select_last_index)


@operator("ArgMin")
def argmin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _first_index(torch.argmin(x, axis, bool(keepdims)), select_last_index)


def _first_index(index: Tensor, select_last_index: int) -> Tensor:
    if select_last_index:
        raise ConversionError("select_last_index", "PyTorch selects the first of equals")
    return index
