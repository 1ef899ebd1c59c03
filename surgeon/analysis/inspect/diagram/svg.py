"""The static picture, as SVG. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.resources import files
from xml.sax.saxutils import escape

from surgeon.analysis.inspect.diagram.layout import GEOMETRY, columns, lay_out
from surgeon.analysis.inspect.diagram.tree import Diagram, Group
from surgeon.analysis.inspect.structure import figure_text

LEGEND = "bars, k and M: multiply-adds; dashed: what the backward pass reads of the forward pass"

_WIDE = {"name": 7.2, "text": 6.1}  # pixels of a letter: a little above the average
_PAD = 10

MARKERS = "".join(
    f'<marker id="to-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6.5" markerHeight="6.5" '
    f'markerUnits="userSpaceOnUse" orient="auto"><path class="head {kind}" d="M0 0.8L8 4L0 7.2z"/></marker>'
    for kind in ("forward", "backward", "saved")
)


def style() -> str:
    """The style sheet of both kinds of picture."""
    return files("surgeon.analysis.inspect.diagram").joinpath("style.css").read_text(encoding="utf-8")


def render(diagram: Diagram, opened: Collection[int]) -> str:
    """`diagram` with the groups `opened` as frames."""
    layout = lay_out(diagram, opened)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {layout.width} {layout.height}" '
        f'width="{layout.width}" height="{layout.height}" role="img" aria-label="{_clean(diagram.title, quote=True)}">',
        f"<style>{style()}</style><defs>{MARKERS}</defs>",
        f'<rect class="paper" width="{layout.width}" height="{layout.height}"/>',
        *_heading(diagram, layout.width),
    ]
    left = columns(True)[0]
    for number, top, bottom, depth in layout.frames:
        inset = GEOMETRY["inset"] * depth
        parts.append(
            f'<rect class="frame" x="{inset}" y="{top}" width="{layout.width - 2 * inset}" height="{bottom - top}" '
            f'rx="6"/>' + _text(diagram.groups[number].short, left, top + 17, "frame-name")
        )
    parts += [f'<path class="edge {edge.kind}{" arc" * edge.arc}" d="{edge.path}"/>' for edge in layout.edges]
    most = max([1, *(work or 0 for n in layout.rows for work in (diagram.groups[n].work, diagram.groups[n].back_work))])
    for number, y in layout.rows.items():
        parts += _row(diagram.groups[number], y, most)
    return "\n".join([*parts, "</svg>\n"])


def _heading(diagram: Diagram, width: int) -> Iterator[str]:
    left, right, _ = columns(True)
    yield _text(_cut(diagram.title, width - 2 * _PAD, "name"), 16, 26, "title")
    yield _text(_cut(diagram.note, width - 2 * _PAD, "text"), 16, 45, "soft")
    two = bool(diagram.groups[0].backward)
    yield _text(LEGEND if two else LEGEND.partition(";")[0], 16, 61, "soft")
    yield _text("forward ↓", left, 90, "heading")
    if two:
        yield _text("backward ↑", right, 90, "heading")


def _row(group: Group, y: int, most: int) -> Iterator[str]:
    left, right, _ = columns(True)
    port = " port" if group.kind == "port" else ""
    closed = "▸ " if group.children else ""
    name = f"{closed}{group.short}"
    if group.forward or (port and group.short):
        work = _work(group.work, port)
        yield f'<g class="forward{port}">{_box(left, y, group.work, most)}'
        yield _line(left, y + 17, name, group.shape, "name")
        yield _line(left, y + 32, group.left, work, "text") + "</g>"
    if group.backward or (port and group.right):
        first = group.right if port or group.forward else name
        work, second = _work(group.back_work, port), "" if port or group.forward else group.right
        yield f'<g class="backward{port}">{_box(right, y, group.back_work, most)}'
        yield _line(right, y + 17, first, group.back_shape, "name" if port else "text", strong=bool(port))
        yield _line(right, y + 32, second, work, "text")
        if group.gates:
            wide = len(group.gates) * 6.2 + 14
            yield f'<rect class="chip" x="{right + _PAD}" y="{y + 22.5:g}" width="{wide:g}" height="14" rx="7"/>'
            yield _text(group.gates, right + _PAD + wide / 2, y + 33, "chip-text")
        yield "</g>"


def _work(work: int | None, port: str) -> str:
    return "" if port else figure_text(work)


def _box(x: int, y: int, work: int | None, most: int) -> str:
    box, row = GEOMETRY["box"], GEOMETRY["row"]
    bar = (box - 8) * (work or 0) / most
    filled = f'<rect class="bar" x="{x + 4}" y="{y + row - 4}" width="{bar:.1f}" height="3" rx="1.5"/>' if bar else ""
    return f'<rect class="box" x="{x}" y="{y}" width="{box}" height="{row}" rx="5"/>{filled}'


def _line(x: int, y: int, words: str, figure: str, letters: str, strong: bool = True) -> str:
    """A text at the left of a box, a figure at its right."""
    room = GEOMETRY["box"] - 2 * _PAD - len(figure) * _WIDE["text"] - 8
    kind = "name" if letters == "name" and strong else "soft"
    drawn = _text(_cut(words, room, letters), x + _PAD, y, kind)
    return drawn + _text(figure, x + GEOMETRY["box"] - _PAD, y, "end soft")


def _cut(words: str, room: float, letters: str) -> str:
    most = max(1, int(room / _WIDE[letters]))
    return words if len(words) <= most else words[: most - 1] + "…"


def _text(words: str, x: float, y: float, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{_clean(words)}</text>' if words else ""


def _clean(words: str, quote: bool = False) -> str:
    """Escaped text without the characters that XML forbids; names from a file may hold them."""
    legal = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
    return escape(legal, {'"': "&quot;"} if quote else {})
