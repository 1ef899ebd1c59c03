"""Figures: panels of captioned pictures, laid out once and drawn as pixels or as SVG. Torch-free."""

from __future__ import annotations

import base64
import functools
import io
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from surgeon.bundle.atomic import replacing
from surgeon.errors import SurgeonError
from surgeon.runtime import pictures

INK, SOFT_INK, ACCENT = "#1a1a1a", "#6b6b6b", "#c8452d"
_GAP, _MARGIN, _FRAME, _NARROWEST = 8, 24, 3, 640  # pixels
_TITLE, _PANEL_TITLE, _HEADING, _CAPTION, _SMALLEST = 24, 17, 14, 13, 8  # sizes of letters
LARGEST = 120e6
"""Pixels of a figure, at most: 360 MB while it is drawn."""


@dataclass(frozen=True)
class Cell:
    """One picture of a grid (None: a gap), the line beneath it, and whether it is framed."""

    picture: PIL.Image.Image | None
    caption: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Panel:
    """A titled block of rows; `headings` stand over its columns."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


# --- marks and their places


@dataclass(frozen=True)
class Text:
    """A line of `size` pixels whose top is at y; `middle`: centred on x, or else begun there."""

    x: float
    y: float
    text: str
    size: int
    colour: str
    middle: bool = False


@dataclass(frozen=True)
class Shown:
    """A picture inside a box, as large as fits, with white beside it."""

    x: int
    y: int
    width: int
    height: int
    picture: PIL.Image.Image
    framed: bool


@dataclass(frozen=True)
class Drawing:
    """Marks on a white sheet, in pixels from its upper left."""

    width: int
    height: int
    marks: Sequence[Text | Shown]


def require_room(columns: int, rows: int, side: int) -> None:
    """Raise SurgeonError where a figure of so many cells, `side` pixels each, would be larger than LARGEST."""
    width, height = columns * (side + _GAP), rows * (side + _GAP)
    if width * height > LARGEST:
        raise SurgeonError(f"the figure would have about {width} x {height} pixels", "Give a smaller --side or --rows")


def arrange(
    panels: Sequence[Panel], title: str, footer: str, side: int, letters: Callable[[str], str] = str
) -> Drawing:
    """The panels one beneath the other, pictures `side` pixels wide; text that does not fit is shortened.

    `letters` turns a text into one that can be drawn.
    """
    columns = max(len(row) for panel in panels for row in panel.rows)
    width = max(2 * _MARGIN + columns * (side + _GAP) - _GAP, _NARROWEST)
    inner = width - 2 * _MARGIN
    first = next(cell.picture for panel in panels for row in panel.rows for cell in row if cell.picture)
    box = side, round(side * first.height / first.width)
    marks: list[Text | Shown] = []
    y = _MARGIN
    if title:
        marks.append(Text(_MARGIN, y, _shorten(letters(title), _TITLE, inner), _TITLE, INK))
        y += 40
    for panel in panels:
        more, y = _arrange_panel(panel, y, box, inner, letters)
        marks += more
    for line in _lines(letters(footer), inner):
        marks.append(Text(_MARGIN, y, line, _CAPTION, SOFT_INK))
        y += 18
    return Drawing(width, y + _MARGIN, marks)


def _arrange_panel(
    panel: Panel, y: int, box: tuple[int, int], inner: int, letters: Callable[[str], str]
) -> tuple[list[Text | Shown], int]:
    """One panel from height `y` down, and the height below it."""
    side, tall = box
    marks: list[Text | Shown] = []
    if panel.title:
        text = _shorten(letters(panel.title), _PANEL_TITLE, inner)
        marks.append(Text(_MARGIN, y, text, _PANEL_TITLE, INK))
        y += 30
    middles = [_MARGIN + column * (side + _GAP) + side // 2 for column in range(max(map(len, panel.rows)))]
    if any(panel.headings):
        for middle, heading in zip(middles, panel.headings, strict=False):
            marks.append(_middle(middle, y, letters(heading), _HEADING, side))
        y += 24
    for row in panel.rows:
        for middle, cell in zip(middles, row, strict=False):
            if cell.picture is not None:
                marks.append(Shown(middle - side // 2, y, side, tall, cell.picture, cell.framed))
            if cell.caption:
                marks.append(_middle(middle, y + tall + 3, letters(cell.caption), _CAPTION, side))
        y += tall + (20 if any(cell.caption for cell in row) else 0) + _GAP
    return marks, y + 16


def _middle(x: float, y: float, text: str, size: int, width: int) -> Text:
    """A line centred on x, in smaller letters before any are cut: a number that is cut reads as another."""
    while size > _SMALLEST and _font(size).getlength(text) > width:
        size -= 1
    return Text(x, y, _shorten(text, size, width), size, SOFT_INK, True)


# --- pixels


def grid(panels: Sequence[Panel], title: str = "", footer: str = "", side: int = 192) -> PIL.Image.Image:
    """The panels as a picture."""
    drawing = arrange(panels, title, footer, side, drawable)
    canvas = PIL.Image.new("RGB", (drawing.width, drawing.height), "white")
    draw = PIL.ImageDraw.Draw(canvas)
    for mark in drawing.marks:
        if isinstance(mark, Text):
            anchor = "ma" if mark.middle else "la"
            draw.text((mark.x, mark.y), mark.text, mark.colour, _font(mark.size), anchor=anchor)
            continue
        size = (mark.width, mark.height)
        canvas.paste(PIL.ImageOps.pad(mark.picture, size, PIL.Image.Resampling.LANCZOS, "white"), (mark.x, mark.y))
        if mark.framed:
            left, top, right, bottom = _frame(mark)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=ACCENT, width=_FRAME)
    return canvas


def _frame(mark: Shown) -> tuple[int, int, int, int]:
    """The outer edge of a picture's frame: left, top, right, bottom."""
    return mark.x - _FRAME, mark.y - _FRAME, mark.x + mark.width + _FRAME, mark.y + mark.height + _FRAME


@functools.lru_cache
def _font(size: int) -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.load_default(size=size)


def _shorten(text: str, size: int, width: int) -> str:
    """`text`, cut and ended by an ellipsis where it is wider than `width` pixels."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def drawable(text: str) -> str:
    """`text` in the letters of Pillow's own font: without accents, and a question mark for each letter beyond Latin."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode("ascii")


def _lines(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(_CAPTION).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


# --- SVG


def svg(panels: Sequence[Panel], title: str = "", footer: str = "", side: int = 192) -> str:
    """The panels as an SVG: every picture inside it at its own size, every text as text."""
    drawing = arrange(panels, title, footer, side, _writable)
    size = f'width="{drawing.width}" height="{drawing.height}" viewBox="0 0 {drawing.width} {drawing.height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            *(_svg_text(mark) if isinstance(mark, Text) else _svg_picture(mark) for mark in drawing.marks),
            "</svg>\n",
        ]
    )


def _svg_text(mark: Text) -> str:
    anchor = ' text-anchor="middle"' if mark.middle else ""
    place = f'x="{mark.x}" y="{mark.y + 0.8 * mark.size:.1f}"'  # the line on which letters stand
    return f'<text {place} font-size="{mark.size}" fill="{mark.colour}"{anchor}>{escape(mark.text)}</text>'


def _svg_picture(mark: Shown) -> str:
    stored = io.BytesIO()
    mark.picture.save(stored, format="PNG")
    data = base64.b64encode(stored.getvalue()).decode("ascii")
    box = f'x="{mark.x}" y="{mark.y}" width="{mark.width}" height="{mark.height}"'
    image = f'<image {box} href="data:image/png;base64,{data}"/>'
    if not mark.framed:
        return image
    left, top, right, bottom = (edge + shift for edge, shift in zip(_frame(mark), (1.5, 1.5, -1.5, -1.5), strict=True))
    edge = f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'
    return f'{image}\n<rect {edge} fill="none" stroke="{ACCENT}" stroke-width="{_FRAME}"/>'


def _writable(text: str) -> str:
    """`text` without characters that XML forbids, such as control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


# --- files


def require_format(path: Path) -> None:
    """Raise SurgeonError unless the path's ending names SVG or a format of pictures."""
    if path.suffix.lower() != ".svg":
        pictures.format_of(path)


def save(path: Path, panels: Sequence[Panel], title: str = "", footer: str = "", side: int = 192) -> None:
    """Write the panels to `path`, as SVG or as a picture by its ending; nothing is left where that fails."""
    if path.suffix.lower() != ".svg":
        pictures.save(grid(panels, title, footer, side), path)
        return
    with replacing(path) as partial:
        partial.write_text(svg(panels, title, footer, side), encoding="utf-8")
