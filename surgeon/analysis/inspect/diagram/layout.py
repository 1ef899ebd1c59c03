"""Where things stand in a picture: rows of forward and backward boxes, frames around them, edges beside them.

The page of an .html picture lays out in the same way, in `page.js`, as its modules are opened and closed; both take
their measures from GEOMETRY. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from surgeon.analysis.inspect.diagram.edges import BACKWARD, FORWARD, SAVED
from surgeon.analysis.inspect.diagram.tree import Diagram

GEOMETRY = {
    "margin": 104,  # beside the boxes, where the edges that skip rows run
    "box": 304,
    "gap": 96,  # between the columns, where the saved edges run
    "row": 42,
    "space": 15,  # below a row
    "head": 25,  # of a frame
    "foot": 4,
    "inset": 5,  # of a frame in a frame
    "top": 104,  # for title and legend
    "lane": 8,  # between edges that run beside each other
    "lanes": 11,
}
"""Pixels; `lanes` is how many edges run beside each other before they share."""


@dataclass(frozen=True)
class Edge:
    """A path, and whether it runs beside the boxes."""

    kind: str
    path: str
    arc: bool


@dataclass
class Layout:
    """Tops of rows by group, and frames (group, top, bottom, depth), in pixels."""

    width: int
    height: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    frames: list[tuple[int, int, int, int]] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)


def columns(two: bool) -> tuple[int, int, int]:
    """Left edges of the forward and the backward boxes, and the width of the picture; `two` or the first alone."""
    measure = GEOMETRY
    right = measure["margin"] + measure["box"] + measure["gap"]
    return measure["margin"], right, right + measure["box"] + measure["margin"] if two else right


def lay_out(diagram: Diagram, opened: Collection[int]) -> Layout:
    """The layout of `diagram` with the groups `opened` as frames."""
    layout = Layout(columns(bool(diagram.groups[0].backward))[2])
    layout.height = _place(diagram, opened, layout, 0, GEOMETRY["top"], 0) + GEOMETRY["foot"]
    layout.edges = list(_edges(diagram, opened, layout))
    return layout


def _place(diagram: Diagram, opened: Collection[int], layout: Layout, number: int, y: int, depth: int) -> int:
    """Put group `number` at height `y`; return where the next one goes."""
    children = diagram.groups[number].children
    if number not in opened or not children:
        layout.rows[number] = y
        return y + GEOMETRY["row"] + GEOMETRY["space"]
    place = len(layout.frames)
    top = y
    if number:
        layout.frames.append((number, top, 0, depth))
        y += GEOMETRY["head"]
    for child in children:
        y = _place(diagram, opened, layout, child, y, depth + 1)
    if number:
        bottom = y - GEOMETRY["space"] + 2 * GEOMETRY["foot"]
        layout.frames[place] = (number, top, bottom, depth)
        y = bottom + GEOMETRY["space"] - GEOMETRY["foot"]
    return y


def shown(diagram: Diagram, opened: Collection[int], number: int) -> int:
    """The row that stands for group `number`: itself, or the outermost closed group around it."""
    row, at = number, diagram.groups[number].parent
    while at is not None:
        if at not in opened:
            row = at
        at = diagram.groups[at].parent
    return row


def _edges(diagram: Diagram, opened: Collection[int], layout: Layout) -> Iterator[Edge]:
    visible = {
        (shown(diagram, opened, start), shown(diagram, opened, end), kind): None for start, end, kind in diagram.edges
    }
    left, right, _ = columns(True)
    box, row = GEOMETRY["box"], GEOMETRY["row"]
    for kind in (SAVED, FORWARD, BACKWARD):
        at = left if kind == FORWARD else right
        sides = [n for n in layout.rows if _has(diagram, n, kind)]
        order = {number: place for place, number in enumerate(sides)}
        arcs = []
        for start, end, _ in (edge for edge in visible if edge[2] == kind):
            a, b = layout.rows[start], layout.rows[end]
            if kind == SAVED:
                y, to, middle = a + row / 2, b + row / 2, (left + box + right) / 2
                yield Edge(kind, f"M{left + box} {y:g}C{middle:g} {y:g} {middle:g} {to:g} {right} {to:g}", False)
            elif start == end or start not in order or end not in order:
                continue
            elif order[end] - order[start] == (1 if kind == FORWARD else -1):
                y, to = (a + row, b) if kind == FORWARD else (a, b + row)
                yield Edge(kind, f"M{at + box / 2:g} {y}V{to}", False)
            else:
                arcs.append((a, b))
        for a, b, lane in _lanes(arcs):
            outside = GEOMETRY["lane"] * (lane % GEOMETRY["lanes"]) + 12
            edge, to = (at, at - outside) if kind == FORWARD else (at + box, at + box + outside)
            yield Edge(kind, _arc(edge, to, a + 0.68 * row, b + 0.32 * row), True)


def _has(diagram: Diagram, number: int, kind: str) -> bool:
    """Whether the group has a box on that side."""
    group = diagram.groups[number]
    if group.kind == "port":
        return bool(group.short if kind == FORWARD else group.right)
    return bool(group.forward if kind == FORWARD else group.backward)


def _lanes(arcs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Each arc with the nearest lane in which it overlaps no other; short ones are nearest."""
    taken: list[list[tuple[int, int]]] = []
    for a, b in sorted(arcs, key=lambda arc: (abs(arc[0] - arc[1]), arc)):
        low, high = min(a, b), max(a, b)
        free = (n for n, used in enumerate(taken) if all(high <= bottom or low >= top for bottom, top in used))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        yield a, b, lane


def _arc(edge: float, lane: float, y: float, to: float) -> str:
    turn = math.copysign(6, edge - lane)
    down = math.copysign(6, to - y)
    return (
        f"M{edge:g} {y:g}H{lane + turn:g}Q{lane:g} {y:g} {lane:g} {y + down:g}V{to - down:g}"
        f"Q{lane:g} {to:g} {lane + turn:g} {to:g}H{edge:g}"
    )
