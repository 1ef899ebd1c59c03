"""The inputs of a network's gates and the cotangents there, by plain autograd: the oracle for `gates.onnx`.

The network runs twice as its author wrote it, with its soft gates and with all of them hard, and the backward of each
gate records its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.verify.oracle.reference import pull_by
from surgeon.verify.oracle.rules import PullbackMode, Rule, Softened, Temperatures, rules_behind


class GateReference(NamedTuple):
    """One soft gate or pool: its input, the cotangents at its output, and a gate's mean |soft - hard|."""

    before: Tensor  # a gate's z, counted from the edge where it opens; a pool's input
    soft: Tensor  # under soft gates, of the shape of its output
    hard: Tensor  # where all are hard
    gap: Tensor | None  # []; None for a pool


def reference_gates(
    module: nn.Module, input: Tensor, cotangent: Tensor, *, recipe: Recipe, temperature: Temperatures
) -> tuple[Tensor, Tensor, Tensor, list[GateReference]]:
    """(output, pullback, gradient where every soft gate and pool is hard, each of them in the order of calls).

    The arguments are those of `surgeon.verify.oracle.reference.reference_pullback`.
    """
    soft, hard = (_RecordingMode(recipe, temperature, hard) for hard in (False, True))
    output, pullback = pull_by(soft, module, input, lambda output: cotangent.expand_as(output))
    gradient = pull_by(hard, module, input, lambda output: cotangent.expand_as(output))[1]
    return output, pullback, gradient, [a.reference(b) for a, b in zip(soft.recorded, hard.recorded, strict=True)]


class _RecordingMode(PullbackMode):
    """The oracle's rules, each of which records its arguments; with `hard`, exact derivatives in their place."""

    def __init__(self, recipe: Recipe, temperature: Temperatures, hard: bool) -> None:
        super().__init__(recipe, temperature)
        self.hard = hard
        self.recorded: list[_RecordingRule] = []

    def _apply(self, z: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
        if isinstance(rule, Softened):
            rule = _RecordingRule(rule.call, rule.rule, rule.activation, plain, self.hard)
        return super()._apply(z, plain, rule)

    def assign(self, output: Tensor) -> None:
        super().assign(output)
        self.recorded = [rule for rule in rules_behind(output) if isinstance(rule, _RecordingRule)]


@dataclass(frozen=True)
class _RecordingRule(Softened):
    """A rule, the function whose backward it is, and the arguments of its calls."""

    plain: Callable[[Tensor], Tensor] = torch.relu
    hard: bool = False
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, z: Tensor, g: Tensor) -> Tensor:
        self.calls.append((z, g))
        return self._exact(z, g) if self.hard else super().__call__(z, g)

    def _exact(self, z: Tensor, g: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.plain(leaf), leaf, g)
        return gradient

    def reference(self, hard: _RecordingRule) -> GateReference:
        """The record of this soft rule and of its `hard` twin."""
        ((z, g),), ((_, exact),) = self.calls, hard.calls
        if self.activation is None:
            return GateReference(z, g, exact, None)
        lower, upper = self.activation.lower, self.activation.upper
        before = z - lower if lower is not None else upper - z
        assert self.call.temperature is not None
        opening = self.rule(z, torch.ones_like(g), self.call.temperature)
        gap = (opening - self._exact(z, torch.ones_like(g))).abs().mean()
        return GateReference(before, g, exact, gap)
