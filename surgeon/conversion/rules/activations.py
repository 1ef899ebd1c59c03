"""Piecewise-linear activations: each a sum of ramps, and each ramp gated by the policy (`surgeon.conversion.gates`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgeon.conversion.gates import BoundGate
from surgeon.conversion.rules.arithmetic import unbroadcast
from surgeon.conversion.rules.registry import aten, rule

Edge = Tensor | float | None


@rule(aten.relu.default, kind="gate")
def relu(g: Tensor, out: Tensor, z: Tensor, *, gate: BoundGate) -> tuple[Tensor]:
    """max(z, 0) is the ramp itself."""
    return (gate(z, g),)


@rule(aten.hardtanh.default, kind="gate")
def hardtanh(
    g: Tensor, out: Tensor, z: Tensor, low: float = -1.0, high: float = 1.0, *, gate: BoundGate
) -> tuple[Tensor]:
    """min(max(z, low), high), ReLU6 with low = 0 and high = 6: a ramp that opens and one that closes."""
    passed = gate(z - low if low else z, g)
    return (gate(high - z, passed) if gate.upper_edge else passed,)


@rule(aten.clamp.default, aten.clamp.Tensor, kind="gate")
def clamp(
    g: Tensor, out: Tensor, z: Tensor, low: Edge = None, high: Edge = None, *, gate: BoundGate
) -> tuple[Tensor | None]:
    """As hardtanh, but either edge may be missing; an upper edge alone is the gate.

    An edge may be a tensor, which gets no cotangent. The gate is shut at the edge itself, like that of hardtanh, and
    like autograd's since torch 2.14 (open before).
    """
    if low is not None:
        g = gate(z if isinstance(low, (int, float)) and low == 0 else z - low, g)
    if high is not None and (low is None or gate.upper_edge):
        g = gate(high - z, g)
    return (unbroadcast(g, z),)


@rule(aten.threshold.default, kind="gate")
def threshold(g: Tensor, out: Tensor, z: Tensor, edge: float, value: float, *, gate: BoundGate) -> tuple[Tensor]:
    """z above the edge, a constant at it and below: a ramp that opens there, wherever it starts from."""
    return (gate(z - edge if edge else z, g),)


@rule(aten.leaky_relu.default, kind="gate")
def leaky_relu(g: Tensor, out: Tensor, z: Tensor, slope: float = 0.01, *, gate: BoundGate) -> tuple[Tensor]:
    """slope * z + (1 - slope) * max(z, 0)."""
    return (slope * g + (1 - slope) * gate(z, g),)


@rule(aten.prelu.default, kind="gate")
def prelu(g: Tensor, out: Tensor, z: Tensor, slope: Tensor, *, gate: BoundGate) -> tuple[Tensor, Callable[[], Tensor]]:
    """As leaky_relu, with one slope for all channels (dimension 1) or one for each."""
    shaped = slope if z.dim() < 2 else slope.reshape(-1, *[1] * (z.dim() - 2))
    passed = gate(z, g)
    return shaped * g + (1 - shaped) * passed, lambda: _slope_cotangent(g, z, slope)


def _slope_cotangent(g: Tensor, z: Tensor, slope: Tensor) -> Tensor:
    per_element = torch.where(z > 0, 0.0, z * g)
    if slope.numel() == 1:
        return per_element.sum().reshape(slope.shape)
    return per_element.sum([dim for dim in range(z.dim()) if dim != 1])
