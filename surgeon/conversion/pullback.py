"""The pullback of a captured graph as a module: the forward pass, then the reverse sweep.

Both are plain tensor code, so `torch.export` of the module records forward and backward as one explicit graph that
calls no autograd. Each of its nodes carries the name of the forward node and the source module that it comes from, in
`meta["custom"]["surgeon"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from surgeon.bundle.manifest import GateSite, Layer, Recipe
from surgeon.conversion.capture.capture import Captured
from surgeon.conversion.capture.nodes import provenance, provenance_of_port, shape_of
from surgeon.conversion.plan import SweepStep, make_plan
from surgeon.conversion.sweep import sweep
from surgeon.errors import SurgeonError
from surgeon.network.layers import joined
from surgeon.network.wrapping import Wrapper


class PullbackModule(Wrapper):
    """A network together with its pullback, as a module that needs no autograd.

    forward(input [N, …], cotangent [N, …output…], temperature [] or, per gate, [gates], extra_inputs) returns the
    network's output and the pullback of `cotangent` to the input (shaped as the input); `extra_inputs` are those that
    the output depends on. Raises Unsupported, at construction, where operators on the path from input to output have no
    rule, and ConversionError where there is no such path.
    """

    def __init__(self, captured: Captured, recipe: Recipe) -> None:
        super().__init__(captured.graph)
        self.plan = make_plan(captured, recipe)
        self.per_gate = recipe.temperature_input == "per-gate"
        soft = [gate for gate in self.gates if gate.soft]
        self.uses_temperature = bool(soft) and (self.per_gate or any(gate.temperature is None for gate in soft))

    @property
    def steps(self) -> tuple[SweepStep, ...]:
        """The nodes that a gradient flows through, from the output back, each with its rule."""
        return self.plan.steps

    @property
    def gates(self) -> tuple[GateSite, ...]:
        """Every gate and pool, in forward order, as the manifest lists them."""
        return self.plan.gates

    @property
    def output_shape(self) -> tuple[int | str, ...]:
        """Shape of one sample's output; sizes that depend on the input's height and width are formulas of H and W."""
        captured = self.plan.captured
        if len(captured.outputs) == 1:
            return shape_of(captured.outputs[0], captured.input)[1:]
        return (sum(layer.size for layer in self.layers),)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The recipe's layers, each with its slice of the output."""
        captured = self.plan.captured
        layers: list[Layer] = []
        start = 0
        for (name, kind), node in zip(captured.layers.items(), captured.outputs, strict=False):
            layers.append(Layer(name, kind, shape_of(node, captured.input)[1:], start))
            start += layers[-1].size
        return tuple(layers)

    @property
    def used_inputs(self) -> tuple[int, ...]:
        """Positions of the extra inputs that the output depends on."""
        return self.plan.captured.used_inputs

    def forward(
        self, input: Tensor, cotangent: Tensor, temperature: Tensor | None = None, extra_inputs: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        values, output = self.run_forward(input, extra_inputs)
        cotangents = sweep(self.plan, values, cotangent, self.inverse_temperature(temperature, input))
        return output, cotangents[self.plan.captured.input]

    def run_forward(self, input: Tensor, extra_inputs: tuple[Tensor, ...]) -> tuple[dict[Node, Any], Tensor]:
        """The forward pass: the value of every node, and the output."""
        values = _ForwardPass(self.wrapped).values(input, *extra_inputs)
        outputs = [values[node] for node in self.plan.captured.outputs]
        with provenance_of_port("output", "forward"):
            return values, joined(outputs if len(outputs) > 1 else outputs[0])

    def inverse_temperature(self, temperature: Tensor | None, input: Tensor) -> Tensor:
        """1/T, [] or [gates]; 1 where no gate reads a temperature."""
        if self.uses_temperature and temperature is None:
            raise SurgeonError("the pullback has soft gates and was given no temperature", "Pass one, such as 0.3")
        if temperature is None:
            return torch.ones((), dtype=input.dtype)
        with provenance_of_port("temperature", "backward"):
            return temperature.reciprocal()


class _ForwardPass(Interpreter):
    """Runs the network's graph, keeps every value, and names each node to what is recorded for it."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__(graph, garbage_collect_values=False)

    def values(self, *inputs: Tensor) -> dict[Node, Any]:
        self.run(*inputs)
        return self.env

    @contextmanager
    def _set_current_node(self, node: Node) -> Iterator[None]:
        # Inside the base class's context, which puts the node's own meta in the place of all annotations.
        with super()._set_current_node(node), provenance(node, "forward"):
            yield
