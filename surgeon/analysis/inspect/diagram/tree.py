"""The contents of a picture: the tree of modules, their nodes, and the edges between them. Torch-free."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from surgeon.analysis.inspect.diagram import edges
from surgeon.analysis.inspect.grouping import Pair, count, named
from surgeon.analysis.inspect.inspection import Inspection, nothing_fits
from surgeon.analysis.inspect.shape_inference import Shape
from surgeon.analysis.inspect.structure import Node, figure_text, total
from surgeon.bundle.manifest import Manifest
from surgeon.errors import SurgeonError

ROWS = 40
"""The number of rows of a picture without a stated depth."""

_FEW = 8  # rows, below which a picture shows too little
_MANY = 80  # children of a module, above which they are grouped


@dataclass
class Group:
    """A module, one of its calls, a node, or an end of the graph: a row of the picture, or a frame around others."""

    short: str
    name: str  # the module's, in full
    parent: int | None
    kind: str = "module"  # module, part (of one: a run of nodes, or a node), port
    children: list[int] = field(default_factory=list)
    forward: list[Node] = field(default_factory=list)  # children's included
    backward: list[Node] = field(default_factory=list)
    left: str = ""  # its operators forward and backward, as text
    right: str = ""
    shape: str = ""  # of its output, forward and backward
    back_shape: str = ""
    gates: str = ""  # rule and temperature
    work: int | None = 0  # multiply-adds, forward and backward
    back_work: int | None = 0


@dataclass
class Diagram:
    """A tree of groups, the first of which is the graph itself, and edges between its leaves."""

    title: str
    note: str
    groups: list[Group]
    edges: list[edges.Edge]


def build(inspection: Inspection) -> Diagram:
    """The diagram of the file that `inspection` pictures; raises SurgeonError where it is empty."""
    pairs, file = inspection.pairs(), inspection.pictured
    assert file is not None and file.structure is not None
    if not pairs:
        raise SurgeonError(f"{inspection.path} has no nodes, so there is nothing to draw")
    tree = _Tree(inspection.manifest)
    ends = edges.ends(file.structure, pairs)
    top = tree.new(_port(ends[0], ends[3]))
    leaves = tree.add(0, list(enumerate(pairs)), ())
    bottom = tree.new(_port(ends[2], ends[1]))
    tree.gather(0)
    drawn = edges.between(file.structure, pairs, leaves, top, bottom)
    manifest = inspection.manifest
    title = f"{manifest.model.name}: {file.name}" if manifest is not None else file.name
    return Diagram(title, _note(tree.groups[0], file.structure.batch), tree.groups, drawn)


def _port(left: Sequence[tuple[str, Shape]], right: Sequence[tuple[str, Shape]]) -> Group:
    """An end of the graph: the ports of the forward and of the backward pass."""
    left, right = (sorted(end, key=lambda port: len(port[1]) < 2) for end in (left, right))  # scalars last
    names = [", ".join(name for name, _ in end) for end in (left, right)]
    shapes = [_shape_text(end[0][1]) if end else "" for end in (left, right)]
    return Group(names[0], "", 0, "port", right=names[1], shape=shapes[0], back_shape=shapes[1])


def opened(diagram: Diagram, depth: int | None = None, pattern: str | None = None) -> set[int]:
    """The groups that are frames: levels above `depth`, or as many as ROWS allow, and modules matching `pattern`."""
    frames, rows = {0}, len(diagram.groups[0].children)
    level, deep = list(diagram.groups[0].children), 1
    while level and (depth is None or deep < depth):
        below: list[int] = []
        for number in level:
            group = diagram.groups[number]
            if group.kind != "module" or not group.children:
                continue
            more = rows - 1 + len(group.children)
            if depth is not None or more <= ROWS or rows < _FEW:
                frames.add(number)
                rows = more
                below += group.children
        level, deep = below, deep + 1
    if pattern is not None:
        _open_named(diagram, frames, pattern)
    return frames


def _open_named(diagram: Diagram, frames: set[int], pattern: str) -> None:
    fitting = [
        number for number, group in enumerate(diagram.groups) if number and named(pattern, group.name, [group.short])
    ]
    if not fitting:
        raise nothing_fits(pattern, [group.name for group in diagram.groups[1:] if group.kind == "module"])
    for start in fitting:
        number: int | None = start if diagram.groups[start].kind == "module" else diagram.groups[start].parent
        while number is not None:
            if diagram.groups[number].children:
                frames.add(number)
            number = diagram.groups[number].parent


# --- the tree


_Item = tuple[int, Pair]


def _path(pair: Pair) -> tuple[str, ...]:
    """The components of its module's name."""
    return tuple(part for part in pair.module.split(".") if part)


class _Tree:
    def __init__(self, manifest: Manifest | None) -> None:
        self.groups = [Group("", "", None)]
        self._default = manifest.defaults.temperature if manifest is not None else 0.0
        self._scalar = manifest is None or manifest.recipe.temperature_input == "scalar"
        self._pairs: dict[int, list[Pair]] = {}

    def new(self, group: Group) -> int:
        """Add `group`, under its parent."""
        number = len(self.groups)
        self.groups.append(group)
        if group.parent is not None:
            self.groups[group.parent].children.append(number)
        return number

    def add(self, parent: int, items: Sequence[_Item], prefix: tuple[str, ...]) -> dict[int, int]:
        """Put `items`, whose paths begin with `prefix`, under `parent`; return the group of each."""
        depth = len(prefix)
        inner = {_path(pair)[depth] for _, pair in items if len(_path(pair)) > depth + 1}
        flat = not prefix and not any(_path(pair) for _, pair in items)  # a file that names no modules
        blocks: list[tuple[tuple[str, ...], list[_Item]]] = []
        merged: dict[str, list[_Item]] = {}
        for item in items:
            here = _path(item[1])[: depth + 1]
            if len(here) > depth and here[depth] in inner:
                if here[depth] not in merged:
                    merged[here[depth]] = []
                    blocks.append((here, merged[here[depth]]))
                merged[here[depth]].append(item)
            elif blocks and blocks[-1][0] == here and not flat and _together(blocks[-1][1][-1][1], item[1]):
                blocks[-1][1].append(item)
            else:
                blocks.append((here, [item]))
        return self._blocks(parent, blocks, prefix)

    def _blocks(
        self, parent: int, blocks: Sequence[tuple[tuple[str, ...], list[_Item]]], prefix: tuple[str, ...]
    ) -> dict[int, int]:
        leaves: dict[int, int] = {}
        if len(blocks) > _MANY:
            size = max(_MANY // 2, math.isqrt(len(blocks)) + 1)
            for start in range(0, len(blocks), size):
                piece = blocks[start : start + size]
                name = f"{start + 1} to {start + len(piece)}"
                leaves |= self._blocks(self.new(Group(name, ".".join(prefix), parent)), piece, prefix)
            return leaves
        for here, items in blocks:
            deeper = {_path(pair) for _, pair in items}
            while len(deeper) > 1 and len({path[: len(here) + 1] for path in deeper}) == 1:  # only one child: no frame
                here = next(iter(deeper))[: len(here) + 1]
            if deeper == {next(iter(deeper))} and deeper != {here}:
                here = next(iter(deeper))
            if deeper != {here}:
                group = Group(_short(here, prefix), ".".join(here), parent)
                leaves |= self.add(self.new(group), items, here)
            else:
                leaves |= self._call(parent, items, here, prefix)
        return leaves

    def _call(
        self, parent: int, items: Sequence[_Item], here: tuple[str, ...], prefix: tuple[str, ...]
    ) -> dict[int, int]:
        """One call of a module without inner modules, or a run of nodes of the surrounding module itself."""
        is_parents = here == prefix
        first = items[0][1]
        nodes = [node for _, pair in items for node in pair.forward]
        operators = [node.operator for node in nodes if node.floating] or [node.operator for node in nodes]
        names = ", ".join(dict.fromkeys(operators)) or first.source
        short = ("ascent step" if first.step else names) if is_parents else _short(here, prefix)
        number = self.new(Group(short, ".".join(here), parent, "part" if is_parents else "module"))
        if len(items) == 1:
            self._pairs[number] = [first]
            return {items[0][0]: number}
        leaves = {}
        self.groups[number].kind = "part"
        for place, pair in items:
            leaf = self.new(Group(pair.source, ".".join(here), number, "part"))
            self._pairs[leaf] = [pair]
            leaves[place] = leaf
        return leaves

    def gather(self, number: int) -> list[Pair]:
        """Fill in the contents of group `number` and of the groups in it; return its pairs."""
        group = self.groups[number]
        if group.kind == "port":
            return []
        pairs = list(self._pairs.get(number, []))
        for child in group.children:
            pairs += self.gather(child)
        group.forward = [node for pair in pairs for node in pair.forward]
        group.backward = [node for pair in pairs for node in pair.backward]
        group.left, group.right = _words(count(group.forward)), _words(count(group.backward))
        shapes = [pair.shape for pair in pairs if pair.forward]
        back = [pair.backward_shape for pair in pairs if pair.backward]
        group.shape = _shape_text(shapes[-1]) if shapes else ""
        group.back_shape = _shape_text(back[0]) if back else ""
        group.work = total(node.multiply_adds for node in group.forward)
        group.back_work = total(node.multiply_adds for node in group.backward)
        group.gates = self._gates(pairs)
        return pairs

    def _gates(self, pairs: Iterable[Pair]) -> str:
        """Such as "soft T 0.3", or "9 soft, T 0.3"."""
        kinds: Counter[tuple[str, str]] = Counter()
        for pair in pairs:
            if pair.gate is not None:
                fixed = pair.gate.temperature
                at = f"T {self._default if fixed is None else fixed:g}" if pair.gate.soft else ""
                kinds[pair.gate.rule, at] += 1
        counts = [
            f"{rule} {at}".strip() if number == 1 else f"{number} {rule}{at and ', ' + at}"
            for (rule, at), number in kinds.items()
        ]
        return "; ".join(counts) if len(counts) < 3 else f"{sum(kinds.values())} gates"


def _together(before: Pair, pair: Pair) -> bool:
    """Whether two neighbours of one module share a row: they do if they have forward nodes."""
    return bool(before.forward) and bool(pair.forward)


def _short(path: Sequence[str], around: Sequence[str]) -> str:
    """The name of a module within another: downsample.0 in layer1.0; but layer1.0 in layer1, as 0 is unclear."""
    start = len(around)
    return ".".join(path[start - 1 if start and path[start].isdecimal() else start :])


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" if number > 1 else name for name, number in counts.items())


def _shape_text(shape: Shape | None) -> str:
    """64 × 56 × 56: of one sample, where the batch is free."""
    if shape is None:
        return ""
    sizes = shape[1:] if shape and isinstance(shape[0], str) and shape[0] != "?" else shape
    return " × ".join(map(str, sizes)) if sizes else "scalar"


def _note(whole: Group, batch: int) -> str:
    sides = [("forward", whole.forward, whole.work), ("backward", whole.backward, whole.back_work)]
    passes = [
        f"{name} {len(nodes)} nodes, {figure_text(work) or 0} multiply-adds" for name, nodes, work in sides if nodes
    ]
    return "; ".join(passes) + (f"; for a batch of {batch}" if batch > 1 else "")
