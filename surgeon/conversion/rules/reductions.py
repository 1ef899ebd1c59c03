"""Sums and means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.conversion.rules.registry import aten, rule


def _reduced(x: Tensor, dims: Sequence[int] | int | None) -> list[int]:
    """The dimensions that a reduction over `dims` takes away, counted from the front; none named means all."""
    if isinstance(dims, int):
        dims = [dims]
    return sorted(dim % x.dim() for dim in dims) if dims else list(range(x.dim()))


def _spread(g: Tensor, x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """`g`, the cotangent of a sum of `x` over `dims`, at every element that was summed."""
    if not keepdim and len(dims) == x.dim():
        return g.reshape([1] * x.dim()).expand(x.shape)
    if not keepdim:
        for dim in dims:
            g = g.unsqueeze(dim)
    return g.expand(x.shape)


@rule(aten.mean.dim)
def mean(
    g: Tensor,
    out: Tensor,
    x: Tensor,
    dims: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor]:
    """Mean over `dims`."""
    reduced = _reduced(x, dims)
    return (_spread(g / math.prod(x.shape[dim] for dim in reduced), x, reduced, keepdim),)


@rule(aten.sum.dim_IntList)
def sum_over(
    g: Tensor,
    out: Tensor,
    x: Tensor,
    dims: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor]:
    """Sum over `dims`."""
    return (_spread(g, x, _reduced(x, dims), keepdim),)


@rule(aten.mean.default)
def mean_all(g: Tensor, out: Tensor, x: Tensor, *, dtype: torch.dtype | None = None) -> tuple[Tensor]:
    """Mean of all elements."""
    return ((g / x.numel()).expand(x.shape),)


@rule(aten.sum.default)
def sum_all(g: Tensor, out: Tensor, x: Tensor, *, dtype: torch.dtype | None = None) -> tuple[Tensor]:
    """Sum of all elements."""
    return (g.expand(x.shape),)
