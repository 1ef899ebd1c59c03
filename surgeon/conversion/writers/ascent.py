"""Gradient ascent along pullbacks, as modules that TorchScript compiles; `step_graph` writes the same for ONNX.

One step is, per sample: x <- x + step_size * g / |g|, then x - x0 projected on the ball of `radius`, then x clamped to
the value range (Satkiewicz 2025, its reference code): step, project, clamp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from surgeon.bundle import manifest

FLOOR = 1e-20
"""Smallest norm that a step or a projection divides by."""


class Objective(nn.Module):
    """The function that an ascent increases: (output, cotangent) -> (score [N], its cotangent at the output).

    logit: sum(c * output), whose cotangent is c, usually one-hot. cross-entropy: minus the cross-entropy to the target
    distribution c, sum(c * log softmax(output)), over the classes (dimension 1). energy: |output|^2 / 2, for which c
    is not read. An output [N] has no classes.
    """

    __constants__ = ("kind",)  # TorchScript treats these attributes as compile-time constants

    def __init__(self, kind: manifest.Objective) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, output: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "logit":
            return _per_sample(cotangent * output), cotangent
        if self.kind == "energy":
            return 0.5 * _per_sample(output * output), output
        score = _per_sample(cotangent * torch.log_softmax(output, 1))
        return score, cotangent - torch.softmax(output, 1) * cotangent.sum(1, keepdim=True)


def _per_sample(value: Tensor) -> Tensor:
    """The sum over each sample, [N]; an output [N] is already one number for each."""
    return value.flatten(1).sum(1) if value.dim() > 1 else value


class AscentStep(nn.Module):
    """One projected step: (input, origin, pullback, step_size [], radius []) -> perturbed; all images [N, …].

    `norm` is that of step and radius; `step` is "unit" (g / |g|), "relative" (also times |x|) or "raw" (g itself); x is
    clamped to [low, high], either of which may be infinite.
    """

    __constants__ = ("order", "step", "low", "high", "floor")

    def __init__(
        self,
        step: manifest.Step = "unit",
        norm: manifest.Norm = "2",
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        super().__init__()
        self.step, self.order = step, float(norm)
        self.low, self.high = low, high
        self.floor = FLOOR

    def _norm(self, x: Tensor) -> Tensor:
        """Norm of each sample, shaped to divide it: [N, 1, …]."""
        flat = x.flatten(1)
        if self.order == 2.0:
            norm = (flat * flat).sum(1).sqrt()
        elif self.order == 1.0:
            norm = flat.abs().sum(1)
        else:
            norm = flat.abs().amax(1)
        return norm.reshape([-1] + [1] * (x.dim() - 1))

    def forward(self, input: Tensor, origin: Tensor, pullback: Tensor, step_size: Tensor, radius: Tensor) -> Tensor:
        direction = pullback
        if self.step != "raw":
            direction = pullback / self._norm(pullback).clamp(min=self.floor)
        if self.step == "relative":
            direction = direction * self._norm(input)
        offset = input + step_size * direction - origin
        offset = offset * (radius / self._norm(offset).clamp(min=self.floor)).clamp(max=1.0)
        return (origin + offset).clamp(self.low, self.high)


def clamp_range(low: float, high: float, margin: float) -> tuple[float, float]:
    """[low - margin, high + margin], infinite where the margin is."""
    return (-math.inf, math.inf) if math.isinf(margin) else (low - margin, high + margin)
