"""The nodes of an ONNX graph by source module: layers, and each forward node beside its backward nodes. Torch-free."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from surgeon.analysis.inspect.shape_inference import Shape
from surgeon.analysis.inspect.structure import Node, Structure, total
from surgeon.bundle.manifest import GateSite


@dataclass(frozen=True)
class Pair:
    """The forward and the backward ONNX nodes of one node of the source graph; either may be empty."""

    module: str
    source: str  # the node's name; without metadata, the ONNX node's
    forward: tuple[Node, ...]
    backward: tuple[Node, ...]
    gate: GateSite | None = None
    step: bool = False  # whether `backward` holds an ascent's step

    @property
    def shape(self) -> Shape | None:
        """Of its last forward output; without one, of its last backward output."""
        return _shape(self.forward or self.backward)

    @property
    def backward_shape(self) -> Shape | None:
        """Of its last backward output."""
        return _shape(self.backward)


@dataclass(frozen=True)
class ModuleShare:
    """A source module without its children; counts are those of `structure.Node`."""

    module: str
    operators: dict[str, int]  # of the forward pass, by how often
    shape: Shape | None
    parameters: int
    multiply_adds: int | None
    bytes: int | None  # of its forward activations
    backward_multiply_adds: int | None
    backward_bytes: int | None
    gates: int


def pictured(structure: Structure) -> int | None:
    """The index of the graph that holds the pullback, such as an ascent's loop; None without backward nodes."""
    backward = collections.Counter(node.graph for node in structure.nodes if node.part == "backward")
    return backward.most_common(1)[0][0] if backward else None


def pairs(structure: Structure, gates: Sequence[GateSite] = ()) -> tuple[Pair, ...]:
    """The nodes of the source graph in order of use, then backward nodes without a forward node, then a step.

    Only of the graph that `pictured` names, if it names one.
    """
    graph = pictured(structure)
    nodes = [node for node in structure.nodes if graph is None or node.graph == graph]
    forward: dict[str, list[Node]] = {}
    backward: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: node.constant):  # weights are made before anything is used
        if node.part != "step":
            side = forward if node.part == "forward" else backward
            side.setdefault(node.source, []).append(node)
    by_node = {gate.node: gate for gate in gates}
    place = {id(node): number for number, node in enumerate(nodes)}
    for members in (*forward.values(), *backward.values()):
        members.sort(key=lambda node: place[id(node)])
    listed = [
        _pair(source, members, backward.pop(source, []), by_node.get(source)) for source, members in forward.items()
    ]
    for source, members in backward.items():
        last = [number for number, pair in enumerate(listed) if pair.module == members[0].module != ""]
        listed.insert(last[-1] + 1 if last else len(listed), _pair(source, [], members, by_node.get(source)))
    step = tuple(node for node in nodes if node.part == "step")
    return (*listed, Pair("", "step", (), step, step=True)) if step else tuple(listed)


def _pair(source: str, forward: Sequence[Node], backward: Sequence[Node], gate: GateSite | None) -> Pair:
    module = next((node.module for node in (*forward, *backward) if node.role != "unmarked"), None)
    module = (*forward, *backward)[0].module if module is None else module
    return Pair(module, source, tuple(forward), tuple(backward), gate)


def layers(pairs: Iterable[Pair]) -> tuple[ModuleShare, ...]:
    """The source modules that have forward nodes, in order of first use."""
    modules: dict[str, list[Pair]] = {}
    for pair in pairs:
        if not pair.step:
            modules.setdefault(pair.module, []).append(pair)
    return tuple(
        _layer(module, members) for module, members in modules.items() if any(pair.forward for pair in members)
    )


def _layer(module: str, members: Sequence[Pair]) -> ModuleShare:
    forward = [node for pair in members for node in pair.forward]
    backward = [node for pair in members for node in pair.backward]
    return ModuleShare(
        module=module,
        operators=count(forward),
        shape=_shape(forward),
        parameters=sum(node.parameters for node in (*forward, *backward)),
        multiply_adds=total(node.multiply_adds for node in forward),
        bytes=total(node.bytes for node in forward),
        backward_multiply_adds=total(node.multiply_adds for node in backward),
        backward_bytes=total(node.bytes for node in backward),
        gates=sum(pair.gate is not None for pair in members),
    )


def summed(name: str, shares: Sequence[ModuleShare]) -> ModuleShare:
    """The sums of `shares` under the name of no module."""
    return ModuleShare(
        module=name,
        operators={},
        shape=None,
        parameters=sum(share.parameters for share in shares),
        multiply_adds=total(share.multiply_adds for share in shares),
        bytes=total(share.bytes for share in shares),
        backward_multiply_adds=total(share.backward_multiply_adds for share in shares),
        backward_bytes=total(share.backward_bytes for share in shares),
        gates=sum(share.gates for share in shares),
    )


def count(nodes: Iterable[Node]) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    return dict(collections.Counter(node.operator for node in nodes).most_common())


def named(pattern: str | None, module: str, names: Iterable[str] = ()) -> bool:
    """Whether `pattern` (*, ? and [...] as in file names; None: any) fits the module, one around it, or a name."""
    if pattern is None:
        return True
    within = module and any(fnmatchcase(module, fits) for fits in (f"{pattern}.*", pattern))
    return bool(within) or any(fnmatchcase(name, pattern) for name in names)


def _shape(nodes: Sequence[Node]) -> Shape | None:
    """Of the last activation among `nodes`, which is a floating-point tensor and no constant."""
    activations = [node for node in nodes if node.floating and not node.constant and node.shape is not None]
    return activations[-1].shape if activations else nodes[-1].shape if nodes else None
