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

from surgeon.artifacts.manifest import Gate as GateSite
from surgeon.artifacts.manifest import Recipe
from surgeon.capture import Captured
from surgeon.errors import SurgeonError
from surgeon.gates import GATES, Gate, Ramp
from surgeon.pullback import Pullback, Step, provenance, shape_of


@dataclass(frozen=True)
class Sight:
    """One soft gate or pool, and the shape of its output [N, …]."""

    site: GateSite
    shape: tuple[int | str, ...]


class Probe(Pullback):
    """forward(as `Pullback`'s) returns, in the order of `surgeon.artifacts.ports.gates`, what the gates do.

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
        self.sights = tuple(Sight(sites[step.node.name], shape_of(step.node, captured.input)) for step in self._soft)
        hard = {step.node for step in self._soft}
        self._hardened = [replace(step, policy=GATES["hard"]) if step.node in hard else step for step in self.steps]

    def forward(  # type: ignore[override]
        self, input: Tensor, cotangent: Tensor, temperature: Tensor | None = None, others: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        values, output = self._run(input, others)
        coldness = self._coldness_of(temperature, input)
        soft: dict[Node, Tensor] = {}
        hard: dict[Node, Tensor] = {}
        pullback = self._sweep(self.steps, values, cotangent, coldness, soft)
        gradient = self._sweep(self._hardened, values, cotangent, coldness, hard)
        seen = [output, pullback, gradient]
        for step in self._soft:
            with provenance(step.node, "backward"):
                given, gap = self._looked_at(step, values, coldness)
                seen += [given, soft[step.node], hard[step.node], *gap]
        return tuple(value.to(input.dtype, copy=True) for value in seen)  # a value may be shown twice

    def _looked_at(self, step: Step, values: dict[Node, Any], coldness: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What enters a gate or pool, and of a gate the mean |soft - hard|."""
        node = step.node
        if step.kind == "pool":
            (entering,) = node.all_input_nodes
            return values[entering], []
        arguments = torch.fx.map_arg(node.args, values.__getitem__)
        keywords = dict(torch.fx.map_arg(node.kwargs, values.__getitem__))
        noting = _Noting(step.policy)
        ones = torch.ones_like(values[node])

        def passed(policy: Gate) -> Tensor:
            ramp = Ramp(policy, self._coldness(step, coldness), self._recipe.edges)
            return step.rule(ones, values[node], *arguments, **keywords, ramp=ramp)[0]

        gap = (passed(noting) - passed(GATES["hard"])).abs().mean()
        return noting.seen[0], [gap]


@dataclass(frozen=True)
class _Noting(Gate):
    """A policy that keeps what its ramps are given."""

    policy: Gate | None = None
    seen: list[Tensor] = field(default_factory=list)
    tempered = True

    def through(self, z: Tensor, cotangent: Tensor, coldness: Tensor) -> Tensor:
        assert self.policy is not None
        self.seen.append(z)
        return self.policy.through(z, cotangent, coldness)
