"""The interactive picture: one self-contained HTML file. Torch-free."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterable
from importlib.resources import files
from typing import Any

from surgeon.analysis.inspect.diagram.layout import GEOMETRY
from surgeon.analysis.inspect.diagram.svg import LEGEND, MARKERS, style
from surgeon.analysis.inspect.diagram.tree import Diagram, Group
from surgeon.analysis.inspect.structure import Node, figure_text


def render(diagram: Diagram, opened: Collection[int]) -> str:
    """A page that draws `diagram`, with the groups `opened` as frames, which the reader can close."""
    here = files("surgeon.analysis.inspect.diagram")
    data = {
        "note": diagram.note,
        "legend": LEGEND if diagram.groups[0].backward else LEGEND.partition(";")[0],
        "geometry": GEOMETRY,
        "groups": [_group(group) for group in diagram.groups],
        "edges": diagram.edges,
        "opened": sorted(opened),
    }
    # HTML does not unescape the text of a script, so whatever could end the script must not occur in it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    page = here.joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(diagram.title),
        "STYLE": style(),
        "MARKERS": MARKERS,
        "SCRIPT": here.joinpath("page.js").read_text(encoding="utf-8"),
        "DATA": text,
    }
    before, *rest = page.split("{{")  # each part is put in once, so that one cannot name another
    return before + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in rest))


def _group(group: Group) -> dict[str, Any]:
    """`group` for the page; its nodes only where no child holds them."""
    leaf = not group.children
    return {
        "short": group.short,
        "name": group.name,
        "parent": group.parent,
        "kind": group.kind,
        "children": group.children,
        "left": group.left,
        "right": group.right,
        "shape": group.shape,
        "back": group.back_shape,
        "gates": group.gates,
        "work": group.work or 0,
        "backWork": group.back_work or 0,
        "workText": figure_text(group.work),
        "backText": figure_text(group.back_work),
        "hasForward": bool(group.forward or (group.kind == "port" and group.short)),
        "hasBackward": bool(group.backward or (group.kind == "port" and group.right)),
        "forward": _nodes(group.forward) if leaf else [],
        "backward": _nodes(group.backward) if leaf else [],
    }


def _nodes(nodes: Iterable[Node]) -> list[list[str]]:
    """Operator, name, output's shape and multiply-adds of each."""
    return [
        [
            node.operator,
            node.name,
            "" if node.shape is None else "[" + ", ".join(map(str, node.shape)) + "]",
            figure_text(node.multiply_adds),
        ]
        for node in nodes
    ]
