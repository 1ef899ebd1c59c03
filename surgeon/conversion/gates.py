"""Gate policies: what the backward pass puts in the place of a ReLU's derivative 1[z > 0].

A policy answers one question, for a ramp that opens at zero: how much of the cotangent passes at pre-activation z?
Every piecewise-linear activation is built from such ramps (`surgeon.conversion.rules.activations`), so a new policy is
one class here and nothing else: `Recipe`, the command line's menu, the artifacts and their verification know it by its
name. `soft` is the excitation pullback (Satkiewicz 2025, arXiv 2507.22832); `guided` is guided backpropagation
(Springenberg et al. 2015, arXiv 1412.6806); `deconvnet` the deconvolutional network's rule (Zeiler and Fergus 2014,
arXiv 1311.2901); `hard` is the exact gradient.

The formulas are methods of tensors, and torch is imported for annotations alone: the command line reads the menu
without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from surgeon.bundle.manifest import GATE_NAMES, Edges
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from torch import Tensor

GATES: dict[str, GatePolicy] = {}
"""The policies by name, in the order of their classes."""


@dataclass(frozen=True)
class GatePolicy:
    """A policy. Its instances hold no tensors, so one serves every node of every graph.

    A subclass with a `name` is registered as it is defined; a second policy of that name raises ValueError.
    """

    name: ClassVar[str] = ""
    uses_temperature: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not cls.name:
            return
        if cls.name in GATES:
            raise ValueError(f"there is a gate {cls.name!r} already: {type(GATES[cls.name]).__qualname__}")
        GATES[cls.name] = cls()
        GATE_NAMES.append(cls.name)

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        """The part of `cotangent` that passes a ramp with pre-activation `z` (same shape), which opens at z = 0.

        `inverse_temperature` is 1/T, a scalar tensor.
        """
        raise NotImplementedError


class Soft(GatePolicy):
    """sigmoid(z/T) * g: what is just below the threshold passes a little, what is just above it not all."""

    name = "soft"
    uses_temperature = True

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        return (z * inverse_temperature).sigmoid() * cotangent


class Hard(GatePolicy):
    """1[z > 0] * g: autograd's gradient."""

    name = "hard"

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        return cotangent.where(z > 0, 0.0)


class Guided(GatePolicy):
    """1[z > 0] * 1[g > 0] * g: guided backpropagation."""

    name = "guided"

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        return cotangent.relu().where(z > 0, 0.0)


class Deconvnet(GatePolicy):
    """1[g > 0] * g, whatever z is."""

    name = "deconvnet"

    def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
        return cotangent.relu()


def gate(name: str) -> GatePolicy:
    """The policy called `name`; raises SurgeonError with the names of all policies."""
    if name not in GATES:
        raise SurgeonError(f"there is no gate {name!r}", f"Gates are {', '.join(GATES)}")
    return GATES[name]


@dataclass(frozen=True)
class BoundGate:
    """A policy at one node of one graph: with its temperature, and with the edges of a two-sided clamp that it softens.

    `inverse_temperature` is 1/T, a scalar tensor (any value, and unused, where the policy reads no temperature). With
    `edges` "lower" a policy that reads one leaves out the upper edge of ReLU6, hardtanh and clamp, as the reference
    does.
    """

    policy: GatePolicy
    inverse_temperature: Tensor
    edges: Edges = "lower"

    def __call__(self, z: Tensor, cotangent: Tensor) -> Tensor:
        return self.policy.through(z, cotangent, self.inverse_temperature)

    @property
    def upper_edge(self) -> bool:
        """Whether a clamp's upper edge gates as its lower one does."""
        return self.edges == "both" or not self.policy.uses_temperature
