"""A pullback that also shows its gates: what `gates.onnx` computes.

One forward pass, and two reverse sweeps from the same cotangent: one with the recipe's soft gates and pools, one in
which every soft one is hard (1[z > 0], shut at z = 0; all of a window to its first maximum), so an ordinary gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from surgeon.bundle.manifest import GateSite, Recipe
from surgeon.conversion.capture.capture import Captured
from surgeon.conversion.capture.nodes import provenance, shape_of
from surgeon.conversion.gates import GATES, GatePolicy
from surgeon.conversion.plan import SweepStep
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.sweep import call_rule, sweep
from surgeon.errors import SurgeonError


@dataclass(frozen=True)
class GateOutput:
    """One soft gate or pool, and the shape of its output [N, …]."""

    site: GateSite
    shape: tuple[int | str, ...]


class GateProbe(PullbackModule):
    """forward(as `PullbackModule`'s) returns, in the order of `surgeon.bundle.ports.gates`, what the gates do.

    First come output, pullback and ordinary gradient. Then, for each soft gate and pool in forward order: its input (a
    gate's z, counted from the edge where it opens), and the cotangents at its output under soft and under hard gates;
    and for a gate the mean of |soft - hard| over its units, []. All are floats of the input's dtype. Raises
    SurgeonError, at construction, where nothing is soft.
    """

    def __init__(self, captured: Captured, recipe: Recipe) -> None:
        super().__init__(captured, recipe)
        sites = {site.node: site for site in self.gates if site.soft}
        if not sites:
            raise SurgeonError("no gate is soft, so soft and hard ones are alike", "Leave the gates' outputs out")
        self._soft = [step for step in reversed(self.steps) if step.node.name in sites]
        self.gate_outputs = tuple(
            GateOutput(sites[step.node.name], shape_of(step.node, captured.input)) for step in self._soft
        )
        hardened = [replace(step, policy=GATES["hard"]) if step.node.name in sites else step for step in self.steps]
        self._hard_plan = replace(self.plan, steps=tuple(hardened))

    def forward(  # type: ignore[override]
        self, input: Tensor, cotangent: Tensor, temperature: Tensor | None = None, extra_inputs: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        values, output = self.run_forward(input, extra_inputs)
        inverse_temperature = self.inverse_temperature(temperature, input)
        soft = sweep(self.plan, values, cotangent, inverse_temperature)
        hard = sweep(self._hard_plan, values, cotangent, inverse_temperature)
        shown = [output, soft[self.plan.captured.input], hard[self.plan.captured.input]]
        for step in self._soft:
            with provenance(step.node, "backward"):
                entering, gap = self._gate_outputs(step, values, inverse_temperature)
                shown += [entering, _first(soft[step.node]), _first(hard[step.node]), *gap]
        return tuple(value.to(input.dtype, copy=True) for value in shown)  # a value may be shown twice

    def _gate_outputs(
        self, step: SweepStep, values: Mapping[Node, Any], inverse_temperature: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The input of a gate or pool, and of a gate the mean |soft - hard|."""
        node = step.node
        if step.kind == "pool":
            (entering,) = node.all_input_nodes
            return values[entering], []
        recording = _RecordingGate(step.policy)
        ones = torch.ones_like(values[node])

        def passed(policy: GatePolicy) -> Tensor:
            gate = step.bound(policy, inverse_temperature, self.plan.recipe.edges)
            share: Tensor = call_rule(step, ones, values, gate)[0]
            return share

        gap = (passed(recording) - passed(GATES["hard"])).abs().mean()
        return recording.inputs[0], [gap]


def _first(cotangent: Any) -> Any:
    """The cotangent of a node's first value: a pool has indices, too."""
    return cotangent[0] if isinstance(cotangent, list) else cotangent


@dataclass(frozen=True)
class _RecordingGate(GatePolicy):
    """A policy that keeps the pre-activations it is called with."""

    policy: GatePolicy | None = None
    inputs: list[Tensor] = field(default_factory=list)
    uses_temperature = True

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        assert self.policy is not None
        self.inputs.append(z)
        return self.policy.through(z, cotangent, inverse_temperature)
