"""Normalisation, in evaluation mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import Context, operator


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    context: Context,
) -> tuple[Tensor]:
    """Before opset 14, more outputs than one mean training."""
    if training_mode or context.outputs > 1:
        raise ConversionError("batch normalisation in training mode", "Export the network in evaluation mode")
    return (F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon),)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor]:
    shape = x.shape[axis % x.dim() :]
    bias = None if bias is None else bias.expand(shape)
    return (F.layer_norm(x, shape, scale.expand(shape), bias, epsilon),)


@operator("GroupNormalization")
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    context: Context,
) -> Tensor:
    """Scale and bias are per group before opset 21, and per channel since."""
    if context.opset < 21:
        channels = x.shape[1] // num_groups
        scale, bias = (value[:, None].expand(-1, channels).reshape(-1) for value in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None, context: Context) -> Tensor:
    """Default axes include the batch, which is left out where the file fixes it to one sample."""
    over = [axis % x.dim() for axis in axes or (0, 2, 3)]
    over = [axis for axis in over if axis or context.fixed != 1]
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True).sqrt() + 1e-9)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(x, p, axis)


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """x / (bias + alpha mean of squares over `size` channels) ** beta; channels outside the range are zero."""
    before = (size - 1) // 2
    squares = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, before, size - 1 - before))
    means = F.avg_pool2d(squares, (size, 1), 1).squeeze(1).reshape(x.shape)
    return x / torch.pow(means * alpha + bias, beta)
