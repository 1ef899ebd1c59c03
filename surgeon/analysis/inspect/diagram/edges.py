"""The edges of a picture, and the ports at its ends. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from surgeon.analysis.inspect.grouping import Pair, pictured
from surgeon.analysis.inspect.shape_inference import Shape
from surgeon.analysis.inspect.structure import Node, Structure

FORWARD, BACKWARD, SAVED = "forward", "backward", "saved"
"""Edges: within the forward pass, within the backward pass, and from the first to the second."""

Edge = tuple[int, int, str]
"""(source group, target group, kind)."""

End = list[tuple[str, Shape]]
"""Names and shapes of ports."""

_OF_SIZES = ("Shape", "Size")


def ends(structure: Structure, pairs: Sequence[Pair]) -> tuple[End, End, End, End]:
    """Inputs of the forward pass, those of the backward pass alone, outputs of the first, and outputs of the second."""
    graph = structure.graphs[pictured(structure) or 0]
    reads, makes = _sides(pairs)
    inputs: dict[str, End] = {FORWARD: [], BACKWARD: []}
    outputs: dict[str, End] = {FORWARD: [], BACKWARD: []}
    for end in graph.inputs:
        inputs[_read_by(reads, end[0])].append(end)
    for end in graph.outputs:
        outputs[_made_by(makes, end[0])].append(end)
    return inputs[FORWARD], inputs[BACKWARD], outputs[FORWARD], outputs[BACKWARD]


def between(
    structure: Structure, pairs: Sequence[Pair], leaves: Mapping[int, int], top: int, bottom: int
) -> list[Edge]:
    """The edges between `leaves`, the group of each pair, and the ends of the graph, the groups `top` and `bottom`.

    Only for what is computed from an input that is no scalar: sizes, temperatures and weights are left out.
    """
    graph = structure.graphs[pictured(structure) or 0]
    reads, makes = _sides(pairs)
    made: dict[str, tuple[int, str]] = {}  # by tensor: the group that has it, and in which pass
    carrying = {name for graph in structure.graphs for name, shape in graph.inputs if len(shape) > 1}
    for name, shape in graph.inputs:
        if len(shape) > 1:
            side = _read_by(reads, name)
            made[name] = (top if side == FORWARD else bottom, side)
    order = {id(node): number for number, node in enumerate(structure.nodes)}
    nodes = sorted(_nodes(pairs), key=lambda placed: order[id(placed[2])])
    for place, side, node in nodes:
        if node.operator not in _OF_SIZES and not carrying.isdisjoint(node.inputs):
            carrying.update(node.outputs)
            made.update(dict.fromkeys(node.outputs, (leaves[place], side)))
    edges: dict[Edge, None] = {}
    for place, side, node in nodes:
        for name in node.inputs:
            if name in made and carrying.issuperset(node.outputs):
                source, before = made[name]
                if (source, before) != (leaves[place], side):
                    edges[source, leaves[place], side if before == side else SAVED] = None
    for name, _ in graph.outputs:
        if name in made:
            source, before = made[name]
            edges[source, bottom if _made_by(makes, name) == FORWARD else top, before] = None
    return list(edges)


def _nodes(pairs: Sequence[Pair]) -> Iterator[tuple[int, str, Node]]:
    """Every node, with the place of its pair and its pass."""
    for place, pair in enumerate(pairs):
        for side, nodes in ((FORWARD, pair.forward), (BACKWARD, pair.backward)):
            for node in nodes:
                yield place, side, node


def _sides(pairs: Sequence[Pair]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The passes that read, and the passes that compute, a tensor, by its name."""
    reads: dict[str, set[str]] = {}
    makes: dict[str, set[str]] = {}
    for _, side, node in _nodes(pairs):
        for name in node.inputs:
            reads.setdefault(name, set()).add(side)
        for name in node.outputs:
            makes.setdefault(name, set()).add(side)
    return reads, makes


def _read_by(reads: Mapping[str, set[str]], name: str) -> str:
    return BACKWARD if reads.get(name) == {BACKWARD} else FORWARD


def _made_by(makes: Mapping[str, set[str]], name: str) -> str:
    return BACKWARD if makes.get(name) == {BACKWARD} else FORWARD
