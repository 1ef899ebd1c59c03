"""Gather, scatter, and selection of values by indices."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import Numbers, operator, required


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.dim()
    length = x.shape[axis]
    indices = torch.where(indices < 0, indices + length, indices).long()
    taken = x.index_select(axis, indices.reshape(-1))
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """`indices` [batch..., ..., k] index the first k axes after the `batch_dims` axes that both share."""
    return x[_places(x, indices, batch_dims)]


def _places(x: Tensor, indices: Tensor, batch_dims: int = 0) -> tuple[Tensor, ...]:
    """One index per indexed axis of x; they broadcast against each other."""
    leading = [
        torch.arange(x.shape[axis]).reshape([-1 if axis == i else 1 for i in range(indices.dim() - 1)])
        for axis in range(batch_dims)
    ]
    return (*leading, *indices.unbind(-1))


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """x with `updates` at `indices` [..., k] into the first k axes."""
    _require_sum(reduction)
    return x.index_put(_places(x, indices), updates, accumulate=reduction == "add")


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    _require_sum(reduction)
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    return x.scatter_add(axis, places, updates) if reduction == "add" else x.scatter(axis, places, updates)


def _require_sum(reduction: str) -> None:
    if reduction not in ("none", "add"):
        raise ConversionError(f"reduction {reduction}", "Use none or add")


@operator("TopK")
def top_k(
    x: Tensor,
    count: Numbers | None = None,
    *,
    axis: int = -1,
    k: int | None = None,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Tensor, Tensor]:
    """Values and indices. k is an attribute before opset 10, and an input since."""
    (length,) = required(count, None if k is None else [k])
    return torch.topk(x, int(length), axis, bool(largest), True)


@operator("OneHot")
def one_hot(indices: Tensor, depth: Numbers, values: Tensor, *, axis: int = -1) -> Tensor:
    """`values` are (off, on); an index outside [-depth, depth) is off everywhere."""
    length = int(depth.item())
    places = torch.where(indices < 0, indices + length, indices).unsqueeze(axis)
    classes = torch.arange(length).reshape([-1, *[1] * (places.dim() - 1 - axis % places.dim())])
    return torch.where(places == classes, values[1], values[0])
