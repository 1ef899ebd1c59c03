"""Upsampling and interpolation: separable linear maps, one constant matrix per axis.

Along one axis an interpolation is out = x M, with M [size, out] the operator itself applied to the identity, so that
its coordinates, scales and edges are PyTorch's own in every mode. Its adjoint is g M^T, axis by axis. M depends on no
input, and a runtime computes it once, as it loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from surgeon.conversion.rules.registry import aten, rule
from surgeon.network.sizes import is_same

AlongAxis = Callable[[Tensor, list[int] | None, list[float] | None], Tensor]
"""The operator, with its own options: (values, output size, scales), of which the last two exclude each other."""


@rule(aten.upsample_nearest2d.vec)
def nearest(
    g: Tensor, out: Tensor, x: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None
) -> tuple[Tensor]:
    """Each element repeated; a whole number of times along each axis is the adjoint of a sum over cells."""
    times = [out.shape[2 + axis] // x.shape[2 + axis] for axis in range(2)]
    if all(is_same(x.shape[2 + axis] * times[axis], out.shape[2 + axis]) for axis in range(2)):
        return (functional.avg_pool2d(g, times) * math.prod(times),)
    return (_pulled(g, x, size, scales, aten.upsample_nearest2d.vec),)


@rule(aten.upsample_bilinear2d.vec)
def bilinear(
    g: Tensor,
    out: Tensor,
    x: Tensor,
    size: Sequence[int] | None,
    align_corners: bool,
    scales: Sequence[float] | None,
) -> tuple[Tensor]:
    """Weights of the two nearest elements along each axis."""

    def along(values: Tensor, size: list[int] | None, scales: list[float] | None) -> Tensor:
        interpolated: Tensor = aten.upsample_bilinear2d.vec(values, size, align_corners, scales)
        return interpolated

    return (_pulled(g, x, size, scales, along),)


def _pulled(
    g: Tensor, x: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None, along: AlongAxis
) -> Tensor:
    """`g` times the transposed matrix of each axis; the matrix is computed with the other axis of size one."""
    for axis in range(2):
        length = x.shape[2 + axis]
        identity = torch.eye(length, dtype=g.dtype, device=g.device)
        identity = identity.reshape(1, length, *([length, 1] if axis == 0 else [1, length]))
        own_size = None if size is None else [size[axis] if a == axis else 1 for a in range(2)]
        own_scales = None if not scales else [scales[axis] if a == axis else 1.0 for a in range(2)]
        matrix = along(identity, own_size, own_scales).reshape(length, -1)  # [size, out]
        g = matrix @ g if axis == 0 else g @ matrix.t()
    return g
