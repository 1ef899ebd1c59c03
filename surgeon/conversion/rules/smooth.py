"""Smooth activations by closed formula: autograd's own derivative of these has no translation to ONNX."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from surgeon.conversion.rules.registry import aten, rule


@rule(aten.silu.default)
def silu(g: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    """d/dx of x s(x), with s the sigmoid and s' = s (1 - s), is s (1 + x (1 - s)) = s + out (1 - s)."""
    s = torch.sigmoid(x)
    return (g * (s + out * (1 - s)),)


@rule(aten.mish.default)
def mish(g: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    """d/dx of x t(x), with t = tanh(softplus(x)) and t' = (1 - t^2) sigmoid(x), is t + x t'."""
    t = torch.tanh(functional.softplus(x))
    return (g * (t + x * (1 - t * t) * torch.sigmoid(x)),)
