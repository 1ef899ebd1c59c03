"""Operators that move, repeat or cut elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from surgeon.conversion.rules.arithmetic import Lazy, unbroadcast
from surgeon.conversion.rules.registry import aten, rule
from surgeon.network.sizes import is_same


@rule(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
)
def reshape(g: Tensor, out: Tensor, x: Tensor, *shape: Any) -> tuple[Tensor]:
    """Same elements, same order, another shape."""
    return (g.reshape(x.shape),)


@rule(aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default, aten.dropout.default)
def identity(g: Tensor, out: Tensor, x: Tensor, *options: Any, memory_format: Any = None) -> tuple[Tensor]:
    """The input, unchanged (dropout in evaluation mode)."""
    return (g,)


@rule(aten.copy.default)
def copy(g: Tensor, out: Tensor, x: Tensor, source: Tensor, non_blocking: bool = False) -> tuple[Lazy, Lazy]:
    """`source` in the place of all of x; an assignment to a part of a tensor becomes this."""
    return lambda: torch.zeros_like(x), lambda: unbroadcast(g, source)


@rule(aten._to_copy.default)
def to_copy(g: Tensor, out: Tensor, x: Tensor, **options: Any) -> tuple[Tensor]:
    """The input in another dtype."""
    return (g.to(x.dtype),)


@rule(aten.permute.default)
def permute(g: Tensor, out: Tensor, x: Tensor, dims: Sequence[int]) -> tuple[Tensor]:
    """out[..., i_k, ...] = x[..., i_dims[k], ...]; the inverse permutation takes it back."""
    inverse = sorted(range(len(dims)), key=lambda position: dims[position] % len(dims))
    return (g.permute(inverse),)


@rule(aten.transpose.int)
def transpose(g: Tensor, out: Tensor, x: Tensor, a: int, b: int) -> tuple[Tensor]:
    """Two dimensions exchanged."""
    return (g.transpose(a, b),)


@rule(aten.t.default)
def t(g: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    """The transpose of a matrix."""
    return (g.t(),)


@rule(aten.expand.default)
def expand(g: Tensor, out: Tensor, x: Tensor, size: Sequence[int], *, implicit: bool = False) -> tuple[Tensor | None]:
    """Dimensions of size one repeated."""
    return (unbroadcast(g, x),)


@rule(aten.cat.default)
def cat(g: Tensor, out: Tensor, tensors: list[Tensor], dim: int = 0) -> tuple[list[Tensor]]:
    """Pieces of the cotangent, as long as the pieces that were joined."""
    return (list(torch.split(g, [piece.shape[dim] for piece in tensors], dim)),)


@rule(aten.stack.default)
def stack(g: Tensor, out: Tensor, tensors: list[Tensor], dim: int = 0) -> tuple[list[Tensor]]:
    """One slice of the cotangent for each tensor."""
    return ([g.select(dim, position) for position in range(len(tensors))],)


def _joined(g: Sequence[Tensor | None], out: Sequence[Tensor], dim: int) -> Tensor:
    """The pieces' cotangents, with zeros for unused pieces, side by side along `dim`."""
    return torch.cat([torch.zeros_like(piece) if c is None else c for c, piece in zip(g, out, strict=True)], dim)


@rule(aten.split_with_sizes.default, aten.split.Tensor)
def split(
    g: Sequence[Tensor | None], out: Sequence[Tensor], x: Tensor, sizes: Sequence[int] | int, dim: int = 0
) -> tuple[Tensor]:
    """Pieces along `dim`."""
    return (_joined(g, out, dim),)


@rule(aten.unbind.int)
def unbind(g: Sequence[Tensor | None], out: Sequence[Tensor], x: Tensor, dim: int = 0) -> tuple[Tensor]:
    """Slices along `dim`, which they lose."""
    slices = [None if c is None else c.unsqueeze(dim) for c in g]
    return (_joined(slices, [piece.unsqueeze(dim) for piece in out], dim),)


@rule(aten.slice.Tensor)
def slice_(
    g: Tensor, out: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[Tensor]:
    """x[start:end:step] along `dim`: the other elements get zeros."""
    size = x.shape[dim]
    if is_same(out.shape[dim], size):
        return (g,)
    first = 0 if start is None else max(start + size, 0) if start < 0 else start
    if isinstance(size, int):
        first = min(first, size)
    if step == 1:
        return (_padded(g, dim, first, size - first - out.shape[dim]),)
    # Spread with zeros: one new trailing dimension of length `step`, of which the first entry is the cotangent.
    dim %= x.dim()
    apart = functional.pad(g.unsqueeze(dim + 1), _widths(g.dim() + 1, dim + 1, 0, step - 1))
    apart = apart.flatten(dim, dim + 1)
    return (_padded(apart, dim, first, size - first - out.shape[dim] * step),)


def _widths(rank: int, dim: int, before: int, after: int) -> list[int]:
    """`functional.pad`'s list, last dimension first, for padding `dim` alone."""
    return [0, 0] * (rank - 1 - dim) + [before, after]


def _padded(g: Tensor, dim: int, before: int, after: int) -> Tensor:
    return functional.pad(g, _widths(g.dim(), dim % g.dim(), before, after))


@rule(aten.select.int)
def select(g: Tensor, out: Tensor, x: Tensor, dim: int, index: int) -> tuple[Tensor]:
    """x[index] along `dim`."""
    size = x.shape[dim]
    first = index + size if index < 0 else index
    return (_padded(g.unsqueeze(dim), dim % x.dim(), first, size - first - 1),)


@rule(aten.unfold.default)
def unfold(g: Tensor, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> tuple[Tensor]:
    """Windows of `size` elements along `dim`, one each `step`, in a new last dimension.

    Element j of window i is at i * step + j; the product with that one-hot matrix adds up what overlaps.
    """
    dim %= x.dim()
    at = torch.arange(out.shape[dim], device=g.device).unsqueeze(1) * step + torch.arange(size, device=g.device)
    one_hot = (at.reshape(-1, 1) == torch.arange(x.shape[dim], device=g.device)).to(g.dtype)
    elements = g.movedim(-1, dim + 1).flatten(dim, dim + 1)
    return ((elements.transpose(dim, -1) @ one_hot).transpose(dim, -1),)


@rule(aten.constant_pad_nd.default)
def constant_pad(g: Tensor, out: Tensor, x: Tensor, widths: Sequence[int], value: float = 0) -> tuple[Tensor]:
    """Padding by a constant; negative widths crop, so the same operator with the signs turned takes it back."""
    return (functional.pad(g, [-width for width in widths]),)
