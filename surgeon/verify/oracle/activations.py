"""ReLU-type functions as a network's author calls them by name: edges and slope of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverloadPacket

from surgeon.errors import SurgeonError


@dataclass(frozen=True)
class Activation:
    """One ReLU-type function: plain(z), open between the edges, with a slope where it is shut."""

    plain: Callable[[Tensor], Tensor]
    lower: Any = None  # number or tensor
    upper: Any = None
    slope: Any = 0.0  # likewise, broadcast against z
    clamps: bool = False
    merges: bool = False  # with another such, into a clamp that has both edges


def _relu(z: Tensor) -> Activation:
    return Activation(torch.relu, lower=0.0, merges=True)


def _relu6(z: Tensor) -> Activation:
    return Activation(F.relu6, lower=0.0, upper=6.0)


def _hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    return Activation(lambda z: F.hardtanh(z, min_val, max_val), lower=min_val, upper=max_val)


def clamp(z: Tensor, min: Any = None, max: Any = None) -> Activation:
    """min(max(z, min), max), either edge of which may be missing, a number or a constant tensor."""
    for edge in (min, max):
        if isinstance(edge, Tensor) and edge.requires_grad:
            raise SurgeonError("a clamp whose edge depends on the input has no pullback rule", "Use constant edges")
    return Activation(lambda z: torch.clamp(z, min, max), lower=min, upper=max, clamps=True, merges=True)


def _clamp_min(z: Tensor, min: Any) -> Activation:
    return clamp(z, min=min)


def _clamp_max(z: Tensor, max: Any) -> Activation:
    return clamp(z, max=max)


def threshold(z: Tensor, threshold: float, value: float) -> Activation:
    """z above the threshold, and `value` elsewhere."""
    return Activation(lambda z: F.threshold(z, threshold, value), lower=threshold)


def leaky_relu(z: Tensor, negative_slope: float = 0.01) -> Activation:
    """z above 0, and slope * z elsewhere."""
    return Activation(lambda z: F.leaky_relu(z, negative_slope), lower=0.0, slope=negative_slope)


def _rrelu(z: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Activation:
    if training:
        raise SurgeonError("a random leaky ReLU in training mode draws its slopes", "Call .eval() on it first")
    return leaky_relu(z, (lower + upper) / 2)


def _prelu(z: Tensor, weight: Tensor) -> Activation:
    weight = weight.detach()
    slope = weight.reshape(1, -1, *[1] * (z.dim() - 2)) if z.dim() > 1 and weight.numel() > 1 else weight
    return Activation(lambda z: torch.where(z > 0, z, slope * z), lower=0.0, slope=slope)


def calls(namespaces: tuple[Any, ...], *names: str) -> list[Any]:
    """Every function of the namespaces that has one of `names`, with the overloads of ATen's operators."""
    functions = [getattr(space, name) for space in namespaces for name in names if hasattr(space, name)]
    packets = [call for call in functions if isinstance(call, OpOverloadPacket)]
    return functions + [getattr(packet, overload) for packet in packets for overload in packet.overloads()]


SPACES = (torch, F, torch.Tensor, torch._C._nn, torch.ops.aten)
_READERS: tuple[tuple[Callable[..., Activation], tuple[str, ...]], ...] = (
    (_relu, ("relu",)),
    (_relu6, ("relu6",)),
    (_hardtanh, ("hardtanh",)),
    (clamp, ("clamp", "clip")),
    (_clamp_min, ("clamp_min",)),
    (_clamp_max, ("clamp_max",)),
    (threshold, ("threshold",)),
    (leaky_relu, ("leaky_relu",)),
    (_prelu, ("prelu",)),
    (_rrelu, ("rrelu",)),
)
ACTIVATIONS = {call: reader for reader, names in _READERS for call in calls(SPACES, *names)}
ACTIVATIONS_IN_PLACE = {
    call: reader for reader, names in _READERS for call in calls(SPACES, *(f"{name}_" for name in names))
}
