"""Replace patterns that are equivalent to a gate, such as torch.maximum(x, zeros), by the gate's operator.

    max(x, c) = clamp(x, c, inf)          x > c ? x : c = clamp(x, c, inf)      x > 0 ? x : s x = leaky_relu(x, s)
    min(x, c) = clamp(x, -inf, c)         x > c ? c : x = clamp(x, -inf, c)     max(x, s x) = that, for 0 <= s < 1
    min(max(x, a), b) = clamp(x, a, b)    x > c ? x : v = threshold(x, c, v)    x * 1[x > c] = x > c ? x : 0

and clamp(x, 0, inf) = relu(x), so that min(relu(x), 6) = clamp(relu(x), 0, 6) = clamp(x, 0, 6). No gradient flows
through c; s is a number, or one slope for each place of a sample. Without this pass the patterns would get their
ordinary derivative without an error. Other functions with a corner (the larger of two activations, say) keep their
exact derivative. So do the patterns of which PyTorch composes a smooth function: the pass looks at operators that the
network's author wrote. `surgeon.verify.oracle.gate_patterns` recognises the same patterns independently, and its
docstring gives the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from surgeon.conversion.rules.registry import CONSTANT, aten

Operand = Any  # a node or a number, among a node's arguments
Named = tuple[OpOverload, tuple[Any, ...]]
"""The gate operator and arguments that are equivalent to a node."""
Edge = float | None

_SAME = {aten.alias.default, aten.clone.default, aten.detach.default}
_COPIES = {*_SAME, aten._to_copy.default}
_FILLED_ALIKE = {*_SAME, aten.expand.default, aten.reshape.default, aten.unsqueeze.default, aten.view.default}
# Comparisons that hold above an edge and those that hold below it: whether they are strict above it.
_ABOVE = {aten.gt.Scalar: True, aten.gt.Tensor: True, aten.ge.Scalar: False, aten.ge.Tensor: False}
_BELOW = {aten.lt.Scalar: False, aten.lt.Tensor: False, aten.le.Scalar: True, aten.le.Tensor: True}


@dataclass(frozen=True)
class Choice:
    """`above` where x > edge (or x >= edge where it is not strict), and `below` elsewhere."""

    x: Node
    edge: Operand
    strict: bool
    above: Operand
    below: Operand


def canonicalize_gates(graph: GraphModule) -> int:
    """max(x, 0) = x > 0 ? x : 0 = x * 1[x > 0] = relu(x), and the other patterns in the docstring of this module."""
    search = _Search(graph)
    count = 0
    for node in list(graph.graph.nodes):
        found = search.named(node)
        if found is not None:
            node.target, node.args = found
            node.kwargs = {}
            count += 1
    return count


class _Search:
    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        self._flowing = _flowing(graph)
        self._first = _first(graph)
        self._one_sided: dict[Node, tuple[Node, Edge, Edge]] = {}

    def named(self, node: Node) -> Named | None:
        """The gate operator equivalent to `node`; None if it is one already, or is no gate."""
        written = node.meta.get("original_aten", node.target)
        find = _WRITTEN.get(getattr(written, "overloadpacket", None)) if node in self._flowing else None
        if find is None:
            return None
        found = find(self, node)
        target, arguments = (node.target, node.args) if found is None else found
        edges = _edges(target, arguments)
        if edges is not None and (edges[1] is None) != (edges[2] is None):
            self._one_sided[node] = edges
        return found

    def clamp(self, node: Node) -> Named | None:
        """A clamp or a ReLU of a clamp: one clamp."""
        edges = _edges(node.target, node.args)
        merged = None if edges is None else self._merged(*edges)
        return None if merged is None else (aten.clamp.default, merged)

    def extremum(self, node: Node) -> Named | None:
        """The larger or smaller of x and a constant, or the larger of x and a fraction of it."""
        largest = node.target in (aten.maximum.default, aten.fmax.default)
        for x, other in (node.args, node.args[::-1]):
            if not isinstance(x, Node) or x not in self._flowing or not _alike(node, x):
                continue
            if other not in self._flowing:
                return self._clamp(x, other, None) if largest else self._clamp(x, None, other)
            slope = self._slope(other, x) if largest else None
            if slope is not None and self._is_part(slope):
                return self._leaky(node, x, slope)
        return None

    def where(self, node: Node) -> Named | None:
        """One of two values, by a condition."""
        condition, value, otherwise = node.args
        return self._chosen(node, self._choice(condition, value, otherwise))

    def mul(self, node: Node) -> Named | None:
        """x times a mask."""
        for x, mask in (node.args, node.args[::-1]):
            named = self._chosen(node, self._choice(mask, x, 0.0))
            if named is not None:
                return named
        return None

    def index_put(self, node: Node) -> Named | None:
        """A constant in the places of a mask."""
        arguments: Any = node.args
        x, places, value, *accumulate = arguments
        if len(places) != 1 or any(accumulate):
            return None
        return self._chosen(node, self._choice(places[0], value, x))

    def _choice(self, condition: Any, value: Operand, otherwise: Operand) -> Choice | None:
        """x where it lies on one side of a constant, and something else on the other; None for other choices."""
        negated = False
        while isinstance(condition, Node) and (condition.target in _COPIES or _is_opposite(condition)):
            negated ^= _is_opposite(condition)
            condition = condition.args[0]
        if not isinstance(condition, Node) or condition.target not in _ABOVE | _BELOW:
            return None
        strict, above = (_ABOVE | _BELOW)[condition.target], condition.target in _ABOVE
        a, b = condition.args
        for x in (value, otherwise):
            for compared, edge, turned in ((a, b, False), (b, a, True)):  # c < x is x > c, and c <= x is x >= c
                if x in self._flowing and self._is_same(compared, x) and edge not in self._flowing:
                    branches = (value, otherwise) if above ^ turned ^ negated else (otherwise, value)
                    return Choice(x, edge, strict ^ turned, *branches)
        return None

    def _chosen(self, node: Node, choice: Choice | None) -> Named | None:
        if choice is None or not _alike(node, choice.x):
            return None
        x, edge = choice.x, choice.edge
        if choice.above is x and self._is_same(choice.below, edge):
            return self._clamp(x, edge, None)
        if choice.below is x and self._is_same(choice.above, edge):
            return self._clamp(x, None, edge)
        start, value = self._number(edge), self._number(choice.below)
        if choice.above is not x or start is None:
            return None
        if value is not None and choice.strict:
            return aten.threshold.default, (x, start, value)
        slope = self._slope(choice.below, x) if start == 0 else None
        return None if slope is None else self._leaky(node, x, slope)

    def _clamp(self, x: Node, low: Operand, high: Operand) -> Named:
        lower, upper = self._number(low), self._number(high)
        if (low is not None and lower is None) or (high is not None and upper is None):
            return aten.clamp.Tensor, (x, low, high)
        merged = self._merged(x, lower, upper)
        if merged is not None:
            return aten.clamp.default, merged
        return (aten.relu.default, (x,)) if lower == 0 else (aten.clamp.default, (x, lower, upper))

    def _merged(self, x: Node, lower: Edge, upper: Edge) -> tuple[Node, float, float] | None:
        """clamp(x, lower, upper), where x is clamped on one side already: both clamps as one, if it has both edges."""
        inner, floor, ceiling = self._one_sided.get(x, (x, None, None))
        if inner.target is aten.linalg_vector_norm.default:  # no gate: see `surgeon.conversion.pullback`
            return None
        low = max((edge for edge in (floor, lower) if edge is not None), default=None)
        high = min((edge for edge in (ceiling, upper) if edge is not None), default=None)
        completed = (floor is not None and upper is not None) or (ceiling is not None and lower is not None)
        if not completed or low is None or high is None or low > high:
            return None
        return inner, low, high

    def _leaky(self, node: Node, x: Node, slope: Operand) -> Named | None:
        """x > 0 ? x : slope * x. The slopes of PyTorch's prelu lie along axis 1, so another axis is moved there."""
        number = self._number(slope)
        if number is not None:
            return aten.leaky_relu.default, (x, number)
        shape = list(x.meta["val"].shape)
        sizes = [1] * (len(shape) - slope.meta["val"].dim()) + list(slope.meta["val"].shape)
        axes = [axis for axis, size in enumerate(sizes) if not isinstance(size, int) or size != 1]
        if len(shape) < 2 or len(sizes) != len(shape) or 0 in axes:
            return None
        with self._graph.graph.inserting_before(node):
            if len(axes) <= 1:
                axis = axes[0] if axes else 1
                flat = _call(node, aten.reshape.default, slope, [-1])
                if axis == 1:
                    return aten.prelu.default, (x, flat)
                moved = _call(node, aten.prelu.default, _call(node, aten.transpose.int, x, 1, axis), flat)
                return aten.transpose.int, (moved, 1, axis)
            if not all(isinstance(size, int) for size in shape[1:]):
                return None
            flat = _call(node, aten.reshape.default, _call(node, aten.expand.default, slope, [1, *shape[1:]]), [-1])
            rows = _call(node, aten.reshape.default, x, [-1, math.prod(shape[1:])])
            return aten.reshape.default, (_call(node, aten.prelu.default, rows, flat), [-1, *shape[1:]])

    def _slope(self, scaled: Operand, x: Operand) -> Operand:
        """s, where `scaled` is s * x for a constant s."""
        if not isinstance(scaled, Node) or scaled.target not in (aten.mul.Tensor, aten.div.Tensor):
            return None
        a, b = scaled.args
        if scaled.target is aten.div.Tensor:
            divisor = self._number(b)
            return 1 / divisor if self._is_same(a, x) and divisor else None
        other = b if self._is_same(a, x) else a if self._is_same(b, x) else None
        return None if other in self._flowing else other

    def _is_part(self, slope: Operand) -> bool:
        """Whether every entry of `slope` is known and lies in [0, 1)."""
        held = torch.tensor(slope) if not isinstance(slope, Node) else self._held(slope)
        return held is not None and bool(((held >= 0) & (held < 1)).all())

    def _is_same(self, a: Operand, b: Operand) -> bool:
        """Whether both are one number or one value; copies, and the same value computed twice, count as one."""
        number = self._number(a)
        if number is not None:
            return number == self._number(b)
        a, b = _source(a), _source(b)
        return a is b or (isinstance(a, Node) and isinstance(b, Node) and self._first[a] is self._first[b])

    def _number(self, value: Operand) -> float | None:
        """The number that `value` is filled with; None where it holds several numbers, or is computed."""
        if not isinstance(value, Node):
            return value
        while value.target in _FILLED_ALIKE or (value.target in _COPIES and value.meta["val"].is_floating_point()):
            source: Any = value.args[0]
            value = source
        if value.target is aten.scalar_tensor.default:
            return _plain(value.args[0])
        if value.target in (aten.full.default, aten.full_like.default):
            return _plain(value.args[1])
        held = self._held(value)
        if held is None or not held.numel() or not bool((held == held.flatten()[0]).all()):
            return None
        return float(held.flatten()[0].item())

    def _held(self, node: Node) -> Tensor | None:
        """The parameter, buffer or constant that `node` reads."""
        held = operator.attrgetter(str(node.target))(self._graph) if node.op == "get_attr" else None
        return held.detach() if isinstance(held, Tensor) else None


_WRITTEN: dict[Any, Callable[[_Search, Node], Named | None]] = {
    **dict.fromkeys((aten.maximum, aten.minimum, aten.fmax, aten.fmin), _Search.extremum),
    **dict.fromkeys((aten.where, aten.masked_fill), _Search.where),
    aten.mul: _Search.mul,
    **dict.fromkeys((aten.index_put, aten.index_put_), _Search.index_put),
    **dict.fromkeys((aten.relu, aten.clamp, aten.clamp_min, aten.clamp_max), _Search.clamp),
}
"""The method that recognises a node, by the operator that the network's author wrote."""


def _flowing(graph: GraphModule) -> set[Any]:
    """The nodes that a gradient reaches from an input."""
    found: set[Any] = set()
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else [value]
        smooth = any(isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex()) for item in values)
        given = node.op == "placeholder" or found.intersection(node.all_input_nodes)
        if smooth and given and node.target not in CONSTANT:
            found.add(node)
    return found


def _first(graph: GraphModule) -> dict[Node, Node]:
    """For each node the first node that computes the same from the same arguments."""
    found: dict[Node, Node] = {}
    seen: dict[Any, Node] = {}
    for node in graph.graph.nodes:
        repeats = node.op in ("call_function", "get_attr") and not _is_random(node)
        arguments = torch.fx.map_arg((node.args, node.kwargs), found.__getitem__)
        found[node] = seen.setdefault((node.target, repr(arguments)) if repeats else node, node)
    return found


def _is_random(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _edges(target: Any, arguments: tuple[Any, ...]) -> tuple[Node, Edge, Edge] | None:
    """x and the edges of a clamp between numbers, or of a ReLU."""
    if target is aten.relu.default:
        return arguments[0], 0.0, None
    if target is not aten.clamp.default:
        return None
    x, low, high = (*arguments, None)[:3]
    return x, _plain(low), _plain(high)


def _call(like: Node, target: OpOverload, *arguments: Any) -> Node:
    """A new node at the place of insertion, with the provenance of `like`."""
    node = like.graph.call_function(target, arguments)
    values = torch.fx.map_arg(arguments, lambda argument: argument.meta["val"])
    node.meta = like.meta | {"val": target(*values)}
    return node


def _alike(node: Node, x: Node) -> bool:
    """Whether the node's value has the shape and dtype of x: nothing was broadcast or promoted."""
    ours, theirs = node.meta["val"], x.meta["val"]
    return str(ours.shape) == str(theirs.shape) and ours.dtype == theirs.dtype


def _source(value: Any) -> Any:
    """The value of which `value` is a copy, detached or not."""
    while isinstance(value, Node) and value.target in _SAME:
        value = value.args[0]
    return value


def _is_opposite(node: Node) -> bool:
    return node.target in (aten.bitwise_not.default, aten.logical_not.default) and node.meta["val"].dtype == torch.bool


def _plain(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, torch.SymInt) else None
