"""Activations. Gated ones call the torch functions that have gate rules."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import Context, Numbers, operator


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("Clip")
def clip(
    x: Tensor,
    low: Numbers | None = None,
    high: Numbers | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    """Edges are attributes before opset 11, which have the whole range of float32 for a default.

    A clamp even where it is a ReLU6: behind a Relu, as TensorFlow's converter wrote ReLU6, both are one gate then.
    """
    lower = float(low) if low is not None else min
    upper = float(high) if high is not None else max
    limit = torch.finfo(torch.float32).max
    lower = None if lower is None or lower <= -limit else lower
    upper = None if upper is None or upper >= limit else upper
    if lower is None and upper is None:
        return x
    return torch.clamp(x, min=lower, max=upper)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0.0)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Zero in [-lambd, lambd]; outside, x moved by `bias` towards zero."""
    return torch.where(x.abs() > lambd, x - bias * torch.sign(x), 0.0)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """One slope, or slopes along an axis, which is moved to axis 1 for PyTorch; other shapes become a `where`."""
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    sizes = [1] * (x.dim() - slope.dim()) + list(slope.shape)
    axes = [axis for axis, size in enumerate(sizes) if size != 1]
    if 0 in axes:
        raise ConversionError(
            f"slopes of shape {list(slope.shape)} for {x.dim()} dimensions", "Use the same for every sample"
        )
    if len(axes) > 1:
        return torch.where(x > 0, x, slope * x)
    if axes[0] == 1:
        return F.prelu(x, slope.reshape(-1))
    return F.prelu(x.movedim(axes[0], 1), slope.reshape(-1)).movedim(1, axes[0])


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """max(0, min(1, alpha x + beta)) by torch's hardsigmoid, x / 6 + 1/2; a clamp would be taken for a gate."""
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return F.hardsigmoid(x * (6 * alpha) + (6 * beta - 3))


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * F.elu(x, alpha)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def softmax_like(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` along an axis; before opset 13 over all axes from it on, flattened."""

    def along(x: Tensor, *, axis: int | None = None, context: Context) -> Tensor:
        if context.opset >= 13:
            return function(x, dim=-1 if axis is None else axis)
        axis = (1 if axis is None else axis) % x.dim()
        if axis == x.dim() - 1:
            return function(x, dim=-1)
        return function(x.flatten(axis), dim=-1).unflatten(-1, x.shape[axis:])

    return along


operator("Softmax")(softmax_like(torch.softmax))
operator("LogSoftmax")(softmax_like(torch.log_softmax))
