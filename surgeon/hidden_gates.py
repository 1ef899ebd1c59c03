"""Gates that are written in other words, such as torch.maximum(x, zeros): found in a captured graph, and named.

    max(x, c) = clamp(x, c, inf)          x > c ? x : c = clamp(x, c, inf)      x > 0 ? x : s x = leaky_relu(x, s)
    min(x, c) = clamp(x, -inf, c)         x > c ? c : x = clamp(x, -inf, c)     max(x, s x) = that, for 0 <= s < 1
    min(max(x, a), b) = clamp(x, a, b)    x > c ? x : v = threshold(x, c, v)    x * 1[x > c] = x > c ? x : 0

and clamp(x, 0, inf) = relu(x). c is whatever no gradient flows through. Without their names they would get their
ordinary derivative without a word. What has a corner and is none of these (the larger of two activations, say) keeps
its exact derivative, and so does what PyTorch composes a smooth function of: a node counts where its author wrote it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from surgeon.rules.registry import CONSTANT, aten

Operand = Any  # a node or a number, among a node's arguments
Named = tuple[OpOverload, tuple[Any, ...]]
"""The operator and arguments that say what a node says."""

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


def name_gates(graph: GraphModule) -> int:
    """max(x, 0) = x > 0 ? x : 0 = x * 1[x > 0] = relu(x), and its like: see this file's head."""
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
        self._clamps: dict[Node, tuple[Node, float | None, float | None]] = {}

    def named(self, node: Node) -> Named | None:
        """What `node` says, in the words of a gate; None where it is none."""
        written = node.meta.get("original_aten", node.target)
        find = _WRITTEN.get(getattr(written, "overloadpacket", None)) if node in self._flowing else None
        found = None if find is None else find(self, node)
        if found is not None and _alike(node, found[1][0]):
            return found
        self._clamps.pop(node, None)
        return None

    def extremum(self, node: Node) -> Named | None:
        """The larger or smaller of x and a constant, or of x and a part of it."""
        largest = node.target in (aten.maximum.default, aten.fmax.default)
        for x, other in (node.args, node.args[::-1]):
            if x in self._flowing and other not in self._flowing:
                return self._clamp(node, x, other, None) if largest else self._clamp(node, x, None, other)
            slope = self._number(self._slope(other, x)) if largest else None
            if slope is not None and 0 <= slope < 1:
                return aten.leaky_relu.default, (x, slope)
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
            for compared, edge, turned in ((a, b, False), (b, a, True)):  # c < x says x > c, and c <= x says x >= c
                if x in self._flowing and _source(compared) is x and edge not in self._flowing:
                    branches = (value, otherwise) if above ^ turned ^ negated else (otherwise, value)
                    return Choice(x, edge, strict ^ turned, *branches)
        return None

    def _chosen(self, node: Node, choice: Choice | None) -> Named | None:
        if choice is None:
            return None
        x, edge = choice.x, choice.edge
        if choice.above is x and self._same(choice.below, edge):
            return self._clamp(node, x, edge, None)
        if choice.below is x and self._same(choice.above, edge):
            return self._clamp(node, x, None, edge)
        start, value = self._number(edge), self._number(choice.below)
        if choice.above is not x or start is None:
            return None
        if value is not None and choice.strict:
            return aten.threshold.default, (x, start, value)
        slope = self._slope(choice.below, x) if start == 0 else None
        number = self._number(slope)
        if number is not None:
            return aten.leaky_relu.default, (x, number)
        return None if slope is None else self._prelu(node, x, slope)

    def _clamp(self, node: Node, x: Operand, low: Operand, high: Operand) -> Named | None:
        assert isinstance(x, Node)
        lower, upper = self._number(low), self._number(high)
        if (low is not None and lower is None) or (high is not None and upper is None):
            return aten.clamp.Tensor, (x, low, high)
        inner, floor, ceiling = self._clamps.get(x, (x, None, None))
        if (floor is None) != (lower is None) and (ceiling is None) != (upper is None):
            lower, upper = (floor, upper) if lower is None else (lower, ceiling)
            if lower <= upper:  # type: ignore[operator]
                return aten.clamp.default, (inner, lower, upper)
            return None
        self._clamps[node] = (x, lower, upper)
        return (aten.relu.default, (x,)) if lower == 0 else (aten.clamp.default, (x, lower, upper))

    def _prelu(self, node: Node, x: Node, slope: Node) -> Named | None:
        """One slope for each channel, in dimension 1."""
        sizes, rank = list(slope.meta["val"].shape), x.meta["val"].dim()
        channel = [1] * (rank - len(sizes)) + sizes
        if (
            rank < 2
            or len(channel) > rank
            or not all(isinstance(size, int) and size == 1 for size in channel[:1] + channel[2:])
        ):
            return None
        with self._graph.graph.inserting_before(node):
            flat = self._graph.graph.call_function(aten.reshape.default, (slope, [-1]))
        flat.meta = node.meta | {"val": slope.meta["val"].reshape(-1)}
        return aten.prelu.default, (x, flat)

    def _slope(self, scaled: Operand, x: Operand) -> Operand:
        """s, where `scaled` is s * x for a constant s."""
        if not isinstance(scaled, Node) or scaled.target not in (aten.mul.Tensor, aten.div.Tensor):
            return None
        a, b = scaled.args
        if scaled.target is aten.div.Tensor:
            divisor = self._number(b)
            return 1 / divisor if a is x and divisor else None
        other = b if a is x else a if b is x else None
        return None if other in self._flowing else other

    def _same(self, a: Operand, b: Operand) -> bool:
        numbers = self._number(a), self._number(b)
        return numbers[0] == numbers[1] if numbers[0] is not None else a is b

    def _number(self, value: Operand) -> float | None:
        """The one number that `value` is filled with; None where it holds several, or is computed."""
        if not isinstance(value, Node):
            return value
        while value.target in _FILLED_ALIKE or (value.target in _COPIES and value.meta["val"].is_floating_point()):
            source: Any = value.args[0]
            value = source
        if value.target is aten.scalar_tensor.default:
            return _plain(value.args[0])
        if value.target in (aten.full.default, aten.full_like.default):
            return _plain(value.args[1])
        held = operator.attrgetter(str(value.target))(self._graph) if value.op == "get_attr" else None
        if not isinstance(held, Tensor) or not held.numel() or not bool((held == held.flatten()[0]).all()):
            return None
        return float(held.flatten()[0].item())


_WRITTEN: dict[Any, Callable[[_Search, Node], Named | None]] = {
    **dict.fromkeys((aten.maximum, aten.minimum, aten.fmax, aten.fmin), _Search.extremum),
    **dict.fromkeys((aten.where, aten.masked_fill), _Search.where),
    aten.mul: _Search.mul,
    **dict.fromkeys((aten.index_put, aten.index_put_), _Search.index_put),
}
"""How a node is read, by the operator that its author wrote."""


def _flowing(graph: GraphModule) -> set[Any]:
    """The nodes that a gradient reaches from an input."""
    found: set[Any] = set()
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else [value]
        floating = any(isinstance(item, Tensor) and item.is_floating_point() for item in values)
        given = node.op == "placeholder" or found.intersection(node.all_input_nodes)
        if floating and given and node.target not in CONSTANT:
            found.add(node)
    return found


def _alike(node: Node, x: Node) -> bool:
    """Whether the node's value has the shape and dtype of x: nothing was broadcast or promoted."""
    ours, theirs = node.meta["val"], x.meta["val"]
    return str(ours.shape) == str(theirs.shape) and ours.dtype == theirs.dtype


def _source(value: Any) -> Any:
    """What `value` is a copy of, detached or not."""
    while isinstance(value, Node) and value.target in _SAME:
        value = value.args[0]
    return value


def _is_opposite(node: Node) -> bool:
    return node.target in (aten.bitwise_not.default, aten.logical_not.default) and node.meta["val"].dtype == torch.bool


def _plain(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, torch.SymInt) else None
