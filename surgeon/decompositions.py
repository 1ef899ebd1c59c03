"""Operators that say what others say, in those others' words, so that gates and pools among them get their rules.

Each takes the operator's own arguments, and returns NotImplemented for those that it has no other words for: the
operator then stays in the graph, and is refused by name where it has no rule. ATen's own decompositions are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from surgeon.rules.pools import averages
from surgeon.sizes import is_symbolic

aten = torch.ops.aten


def adaptive_max_pool2d(x: Tensor, output_size: Sequence[int]) -> Any:
    """Max pooling over cells of one size, where `output_size` divides the input's."""
    kernel = _cells(x, output_size)
    return aten.max_pool2d_with_indices(x, kernel) if kernel else NotImplemented


def adaptive_max_pool3d(x: Tensor, output_size: Sequence[int]) -> Any:
    """As in two dimensions."""
    kernel = _cells(x, output_size)
    return aten.max_pool3d_with_indices(x, kernel) if kernel else NotImplemented


def _cells(x: Tensor, output_size: Sequence[int]) -> list[int]:
    """Size of the cells along each axis; empty where they differ among themselves, or may."""
    sizes = x.shape[-len(output_size) :]
    if is_symbolic(*sizes):
        return []
    divided = all(size % out == 0 for size, out in zip(sizes, output_size, strict=True))
    return [size // out for size, out in zip(sizes, output_size, strict=True)] if divided else []


def adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Any:
    """As in three dimensions where the size is free; of a fixed one ONNX's exporter finds these words itself."""
    return _averaged(x, output_size) if is_symbolic(*x.shape[-2:]) else NotImplemented


def adaptive_avg_pool3d(x: Tensor, output_size: Sequence[int]) -> Any:
    """Average pooling over cells of one size, or else a product with a matrix along each axis: ONNX has no word."""
    kernel = _cells(x, output_size)
    return aten.avg_pool3d(x, kernel) if kernel else _averaged(x, output_size)


def _averaged(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """The product with the matrix of averages along each axis, which is constant where the size is."""
    for dim, out in zip(range(-len(output_size), 0), output_size, strict=True):
        if str(x.shape[dim]) != str(out):  # asked of a symbol itself, it would be specialised
            x = (x.transpose(dim, -1) @ averages(x.shape[dim], out, x).t()).transpose(dim, -1)
    return x


def as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Any:
    """A reshape and a permutation, where it reads the whole of a tensor without gaps, each element once.

    Both are brought into the order of memory, outermost first; dimensions of size one may have any stride.
    """
    ours, theirs = _in_memory(x.shape, x.stride()), _in_memory(size, stride)
    if offset or ours is None or theirs is None or x.numel() != _product(size):
        return NotImplemented
    memory = x.permute(ours).reshape([size[dim] for dim in theirs])
    return memory.permute(sorted(range(len(theirs)), key=theirs.__getitem__))


def _in_memory(size: Sequence[int], stride: Sequence[int]) -> list[int] | None:
    """The dimensions from the largest stride to the smallest, those of size one first; None where there are gaps."""
    single = [isinstance(length, int) and length == 1 for length in size]  # asked of a symbol, it would be specialised
    order = sorted(range(len(size)), key=lambda dim: (not single[dim], -stride[dim]))
    step = 1
    for dim in reversed(order):
        if not single[dim] and stride[dim] != step:
            return None
        step = step * size[dim]
    return order


def _product(size: Sequence[int]) -> int:
    product = 1
    for length in size:
        product = product * length
    return product


def cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    """sum a b / (max(|a|, eps) max(|b|, eps)): floors of norms, which are no gates (see `surgeon.pullback`)."""
    norms = [aten.linalg_vector_norm(value, 2, [dim], True).clamp(min=eps) for value in (a, b)]
    return ((a / norms[0]) * (b / norms[1])).sum(dim)


def rrelu(
    x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Any:
    """LeakyReLU with the mean slope, in evaluation mode."""
    return NotImplemented if training else (aten.leaky_relu(x, (lower + upper) / 2), noise)


DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten._adaptive_avg_pool3d.default: adaptive_avg_pool3d,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    aten.adaptive_max_pool3d.default: adaptive_max_pool3d,
    aten.as_strided.default: as_strided,
    aten.cosine_similarity.default: cosine_similarity,
    aten.rrelu_with_noise_functional.default: rrelu,
}
