"""What a pullback does, decided before anything runs: which nodes have a gradient, and the rule at each of them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from surgeon.bundle.manifest import Edges, GateSite, Recipe
from surgeon.bundle.temperatures import assign
from surgeon.conversion.capture.capture import Captured
from surgeon.conversion.capture.nodes import shape_of, source_classes, source_module, value_tensors, where
from surgeon.conversion.gates import GATES, BoundGate, GatePolicy, gate
from surgeon.conversion.rules import CONSTANT, DERIVED, RULES
from surgeon.conversion.rules.derived import DerivedRule, OperatorCall
from surgeon.errors import ConversionError


@dataclass(frozen=True)
class SweepStep:
    """One node of the reverse sweep: its rule, and the policy that the rule is bound to (None for exact rules).

    `entry` is the gate's place in a temperature that has one entry per gate, and `temperature` its fixed value, if any.
    """

    node: Node
    rule: Callable[..., Any]
    policy: GatePolicy | None
    kind: str
    entry: int | None = None
    temperature: float | None = None

    @property
    def is_site(self) -> bool:
        """Whether the node is a gate or a pool, as the manifest lists them."""
        return self.kind in ("gate", "pool") and self.policy is not None

    def bound(self, policy: GatePolicy, inverse_temperature: Tensor, edges: Edges) -> BoundGate:
        """`policy` at this node; `inverse_temperature` is 1/T as a caller gives it: [], or [gates]."""
        if self.policy is not None and self.policy.uses_temperature:
            if self.entry is not None:
                inverse_temperature = inverse_temperature.select(0, self.entry)
            elif self.temperature is not None:
                inverse_temperature = torch.full((), 1 / self.temperature, dtype=inverse_temperature.dtype)
        return BoundGate(policy, inverse_temperature, edges)


class Unsupported(ConversionError):
    """Operators on the path from input to output that have no pullback: a reason for each node, all in one line.

    `steps` are the other nodes' steps.
    """

    def __init__(self, refused: dict[Node, str], remedy: str, steps: Sequence[SweepStep] = ()) -> None:
        by_operator: dict[Any, list[str]] = {}
        for node, reason in refused.items():
            by_operator.setdefault(node.target, []).append(reason)
        lines = [
            reasons[0] + (f" and {len(reasons) - 1} more" if reasons[1:] else "") for reasons in by_operator.values()
        ]
        super().__init__("; ".join(lines), remedy)
        self.refused, self.steps = refused, steps


@dataclass(frozen=True)
class Plan:
    """The sweep over a captured network under one recipe.

    `active` are the nodes through which a gradient flows, `steps` their rules from the output back, and `gates` the
    gates and pools among them in forward order.
    """

    captured: Captured
    recipe: Recipe
    active: frozenset[Node]
    steps: tuple[SweepStep, ...]
    gates: tuple[GateSite, ...]


def make_plan(captured: Captured, recipe: Recipe) -> Plan:
    """Choose the rule of every node that a gradient flows through.

    Raises Unsupported where one has no rule, and ConversionError where nothing flows from the output to the input.
    """
    active = _active_nodes(captured)
    steps = _steps(captured, recipe, active)
    sites = _gate_sites(captured, recipe, steps)
    entries = {site.node: (place, site.temperature) for place, site in enumerate(sites)}
    per_gate = recipe.temperature_input == "per-gate"
    for place, step in enumerate(steps):
        if step.is_site:
            entry, temperature = entries[step.node.name]
            steps[place] = replace(step, entry=entry if per_gate else None, temperature=temperature)
    return Plan(captured, recipe, frozenset(active), tuple(steps), sites)


def _gate_sites(captured: Captured, recipe: Recipe, steps: Sequence[SweepStep]) -> tuple[GateSite, ...]:
    """Every gate and pool, in forward order, as the manifest lists them."""
    sites = [
        GateSite(
            node=step.node.name,
            module=source_module(step.node),
            op=str(step.node.target),
            kind=step.kind,
            rule=step.policy.name,
            shape=shape_of(step.node.args[0], captured.input),
            soft=step.policy.uses_temperature,
        )
        for step in reversed(steps)
        if step.is_site and step.policy is not None
    ]
    temperatures = assign(recipe.temperatures, sites)
    return tuple(replace(site, temperature=value) for site, value in zip(sites, temperatures, strict=True))


def _steps(captured: Captured, recipe: Recipe, active: Set[Node]) -> list[SweepStep]:
    """A step for each active node, from the output back; raises Unsupported with all nodes that can have none.

    A node that draws random numbers is refused even where no gradient flows through it: an artifact could not be
    compared with the network.
    """
    steps: list[SweepStep] = []
    refused: dict[Node, str] = {}
    remedies: list[str] = []
    choose = _RuleChooser(captured, recipe, active)
    used = _ancestors(captured.outputs)
    for node in reversed(captured.graph.graph.nodes):
        if node in used and _draws(node):
            refused[node] = f"{where(node)} draws random numbers, and an artifact computes the same at every run"
            remedies.append("Draw them outside, as another input of the network (--extra-input), or leave them out")
        elif node in active and node.op == "call_function":
            try:
                steps.append(choose(node))
            except ConversionError as error:
                refused[node] = error.message
                remedies.append(error.remedy)
    if refused:
        raise Unsupported(dict(reversed(refused.items())), remedies[-1], steps)
    return steps


class _RuleChooser:
    """Chooses the rule of a node from the lists in `surgeon.conversion.rules`; derived rules are shared."""

    def __init__(self, captured: Captured, recipe: Recipe, active: Set[Node]) -> None:
        self._captured, self._recipe, self._active = captured, recipe, active
        self._derived: dict[Hashable, DerivedRule] = {}

    def __call__(self, node: Node) -> SweepStep:
        """The step for `node`; raises ConversionError where it can have none."""
        if node.target is operator.getitem:
            return SweepStep(node, _pull_back_getitem, None, "exact")
        if any(argument in self._active for argument in _nodes_in(list(node.kwargs.values()))):
            raise ConversionError(f"{where(node)} takes the cotangent through a keyword", "Write a rule for it")
        if any(value.is_complex() for value in value_tensors(node)):  # a product's rule, say, would lack a conjugate
            raise ConversionError(
                f"no pullback rule for {where(node)}, which computes complex numbers", "Leave these operators out"
            )
        known = RULES.get(node.target) if isinstance(node.target, OpOverload) else None
        if known is not None:
            if known.kind == "gate" and (_is_norm_floor(node) or _is_relu_of_abs(node)):
                return SweepStep(node, known.backward, GATES["hard"], "exact")
            return SweepStep(node, known.backward, self._policy(node, known.kind), known.kind)
        if node.target not in DERIVED:
            raise ConversionError(
                f"no pullback rule for {where(node)}",
                "Write a rule in surgeon/conversion/rules, or leave these operators out",
            )
        return SweepStep(node, self._derive(node), None, "derived")

    def _policy(self, node: Node, kind: str) -> GatePolicy | None:
        """The policy at a gate or pool: the recipe's, or the exact one where its scope leaves the node out."""
        if kind == "exact":
            return None
        inside = self._captured.gate_classes.intersection(source_classes(node))
        if self._recipe.gate_scope == "modules" and not inside:
            return GATES["hard"]
        return gate(self._recipe.gate if kind == "gate" else self._recipe.pool)

    def _derive(self, node: Node) -> DerivedRule:
        """PyTorch's own derivative as a graph."""
        arguments = torch.fx.map_arg(node.args, lambda argument: argument.meta["val"])
        leaves, _ = torch.utils._pytree.tree_flatten(node.args)
        read = {user.args[1] for user in node.users if user.target is operator.getitem and user in self._active}
        several = isinstance(node.meta["val"], (tuple, list))
        assert isinstance(node.target, OpOverload)
        active = tuple(leaf in self._active for leaf in leaves)
        outputs: Any = tuple(sorted(read)) if several else None
        call = OperatorCall(node.target, arguments, dict(node.kwargs), active, outputs)
        signature = call.signature
        try:
            if signature not in self._derived:
                self._derived[signature] = DerivedRule(call)
            return self._derived[signature]
        except ConversionError as error:
            raise ConversionError(f"{where(node)}: {error.message}", error.remedy) from error


def _pull_back_getitem(g: Any, out: Any, values: Sequence[Any], index: int) -> tuple[list[Any]]:
    """The cotangents of all `values`, None but for the one that getitem reads."""
    return ([g if place == index else None for place in range(len(values))],)


def _active_nodes(captured: Captured) -> set[Node]:
    """Nodes through which a gradient flows from the input to the output; raises ConversionError where none does."""
    reached = {captured.input}
    for node in captured.graph.graph.nodes:
        differentiable = node.op == "call_function" and node.target not in CONSTANT and _is_floating(node)
        if differentiable and any(argument in reached for argument in node.all_input_nodes):
            reached.add(node)
    if captured.outputs == (captured.input,):
        raise ConversionError(
            f"{_output_name(next(iter(captured.layers), ''))} is the input itself, whose pullback is the cotangent",
            "There is nothing to convert: choose another layer or output",
        )
    input_shape = captured.input.meta["val"].shape
    for node, name in itertools.zip_longest(captured.outputs, captured.layers):
        if node not in reached:
            raise ConversionError(
                f"{_output_name(name)} does not depend on the input through anything that has a gradient"
                f"{_dead_end(captured, reached)}",
                "There is nothing to pull back",
            )
        shape = node.meta["val"].shape
        if not shape or str(shape[0]) != str(input_shape[0]):
            raise ConversionError(
                f"the network maps {list(input_shape)} to {list(shape)}, which has another batch",
                "Its output needs one row for each sample of its input",
            )
    return _ancestors(captured.outputs, reached)


def _output_name(layer: str | None) -> str:
    return f"the layer {layer}" if layer else "the output"


def _ancestors(outputs: Sequence[Node], within: Set[Node] | None = None) -> set[Node]:
    """`outputs` and all nodes that they are computed from, along paths that stay `within` these nodes, if any."""
    visited: set[Node] = set()
    pending = list(outputs)
    while pending:
        node = pending.pop()
        if node not in visited and (within is None or node in within):
            visited.add(node)
            pending += node.all_input_nodes
    return visited


def _dead_end(captured: Captured, reached: Set[Node]) -> str:
    """Where the path from the input ends, as the end of a sentence: at the last operators that it leads to."""
    ends = [
        where(node)
        for node in captured.graph.graph.nodes
        if node not in reached
        and isinstance(node.meta.get("val"), Tensor)  # sizes of the input do not count
        and not reached.isdisjoint(node.all_input_nodes)
    ]
    return f": it ends at {', '.join(ends[:3])}{', …' if ends[3:] else ''}" if ends else ": no value of it is read"


def _draws(node: Node) -> bool:
    """Whether the node's value differs from run to run; arguments of attention and dropout can switch that off."""
    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    arguments = {
        argument.name: node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for i, argument in enumerate(node.target._schema.arguments)
    }
    return all(arguments.get(name, True) for name in ("dropout_p", "train", "training"))


def _is_norm_floor(node: Node) -> bool:
    """Whether the clamp keeps a norm from dividing by zero, as in functional.normalize: that is no gate."""
    aten, clamped = torch.ops.aten, node.args[0]
    assert isinstance(clamped, Node)
    return node.target in (aten.clamp.default, aten.clamp.Tensor) and clamped.target is aten.linalg_vector_norm.default


def _is_relu_of_abs(node: Node) -> bool:
    """Whether the node is relu(abs(x)), as in functional.lp_pool2d: the identity there, and no gate."""
    aten, argument = torch.ops.aten, node.args[0]
    written = getattr(node.meta.get("original_aten", node.target), "overloadpacket", None)
    return written in (aten.relu, aten.relu_) and isinstance(argument, Node) and argument.target is aten.abs.default


def _is_floating(node: Node) -> bool:
    """Whether the node has a value of real or complex numbers; indices are not differentiable."""
    return any(value.is_floating_point() or value.is_complex() for value in value_tensors(node))


def _nodes_in(arguments: Any) -> list[Node]:
    """All nodes in nested arguments."""
    nodes: list[Node] = []
    torch.fx.map_arg(arguments, nodes.append)
    return nodes
