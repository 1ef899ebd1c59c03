"""Normalisation by stored statistics. (Norms that measure their own input are in the derived list.)"""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.conversion.rules.registry import aten, rule


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm(
    g: tuple[Tensor | None, ...],
    out: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor]:
    """Evaluation mode: affine, channel (dimension 1) by channel. The other outputs are empty."""
    assert g[0] is not None
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    return (g[0] * scale.reshape(-1, *[1] * (x.dim() - 2)),)
