"""A pullback that also shows its gates: what `gates.onnx` computes.

One forward pass, and two reverse sweeps from the same cotangent: one with the recipe's soft gates and pools, one in
which every soft one is hard (1[z > 0], shut at z = 0; all of a window to its first maximum), so an ordinary gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from surgeon.bundle.manifest import GateSite, Recipe
from surgeon.conversion.capture.capture import Captured
from surgeon.conversion.gates import GATES, BoundGate, GatePolicy
from surgeon.conversion.pullback import PullbackModule, SweepStep, provenance, shape_of
from surgeon.errors import SurgeonError


@dataclass(frozen=True)
class GateOutput:
    """One soft gate or pool, and the shape of its output [N, …]."""

    site: GateSite
    shape: tuple[int | str, ...]


class GateProbe(PullbackModule):
    """forward(as `PullbackModule`'s) returns, in the order of `surgeon.bundle.ports.gates`, what the gates do.

    That is output, pullback and ordinary gradient; then, of each soft gate and pool in forward order: what enters it
    (a gate's z, counted from the edge where it opens; a pool's input), the cotangents that arrive at its output under
    soft and under hard gates; and of a gate the mean of |soft - hard| over its units, [], all as floats of the input.
    Raises SurgeonError, at construction, where nothing is soft.
    """

    def __init__(self, captured: Captured, recipe: Recipe) -> None:
        super().__init__(captured, recipe)
        sites = {site.node: site for site in self.gates if site.rule == "soft"}
        if not sites:
            raise SurgeonError("no gate is soft, so soft and hard ones are alike", "Leave the gates' outputs out")
        self._soft = [step for step in reversed(self.steps) if step.node.name in sites]
        self.gate_outputs = tuple(
            GateOutput(sites[step.node.name], shape_of(step.node, captured.input)) for step in self._soft
        )
        hard = {step.node for step in self._soft}
        self._hardened = [replace(step, policy=GATES["hard"]) if step.node in hard else step for step in self.steps]

    def forward(  # type: ignore[override]
        self, input: Tensor, cotangent: Tensor, temperature: Tensor | None = None, extra_inputs: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        values, output = self._run(input, extra_inputs)
        inverse_temperature = self._inverse_temperature_of(temperature, input)
        soft: dict[Node, Tensor] = {}
        hard: dict[Node, Tensor] = {}
        pullback = self._sweep(self.steps, values, cotangent, inverse_temperature, soft)
        gradient = self._sweep(self._hardened, values, cotangent, inverse_temperature, hard)
        seen = [output, pullback, gradient]
        for step in self._soft:
            with provenance(step.node, "backward"):
                given, gap = self._gate_outputs(step, values, inverse_temperature)
                seen += [given, soft[step.node], hard[step.node], *gap]
        return tuple(value.to(input.dtype, copy=True) for value in seen)  # a value may be shown twice

    def _gate_outputs(
        self, step: SweepStep, values: dict[Node, Any], inverse_temperature: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """What enters a gate or pool, and of a gate the mean |soft - hard|."""
        node = step.node
        if step.kind == "pool":
            (entering,) = node.all_input_nodes
            return values[entering], []
        arguments = torch.fx.map_arg(node.args, values.__getitem__)
        keywords = dict(torch.fx.map_arg(node.kwargs, values.__getitem__))
        noting = _RecordingGate(step.policy)
        ones = torch.ones_like(values[node])

        def passed(policy: GatePolicy) -> Tensor:
            gate = BoundGate(policy, self._inverse_temperature(step, inverse_temperature), self._recipe.edges)
            return step.rule(ones, values[node], *arguments, **keywords, gate=gate)[0]

        gap = (passed(noting) - passed(GATES["hard"])).abs().mean()
        return noting.seen[0], [gap]


@dataclass(frozen=True)
class _RecordingGate(GatePolicy):
    """A policy that keeps what its ramps are given."""

    policy: GatePolicy | None = None
    seen: list[Tensor] = field(default_factory=list)
    uses_temperature = True

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        assert self.policy is not None
        self.seen.append(z)
        return self.policy.through(z, cotangent, inverse_temperature)
