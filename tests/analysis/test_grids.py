from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy
import PIL.Image
import pytest

from surgeon.analysis.figures import grids
from surgeon.analysis.figures.grids import Cell, Panel, grid
from surgeon.errors import SurgeonError


def pixels(photo: PIL.Image.Image) -> numpy.ndarray:
    return numpy.asarray(photo).astype(int)


def test_a_cell_of_another_shape_is_not_stretched():
    wide, tall = PIL.Image.new("RGB", (40, 20), "black"), PIL.Image.new("RGB", (20, 40), "black")
    drawn = pixels(grid([Panel("", [], [[Cell(wide), Cell(tall)]])], side=64))
    assert (drawn == 0).all(2).sum() == 64 * 32 + 16 * 32


def test_grid_shows_cells_text_and_frames():
    cell = PIL.Image.new("RGB", (8, 8), "blue")
    rows = [[Cell(cell, "one"), Cell(cell, "two", framed=True)], [Cell(cell), Cell(cell)]]
    picture = grid([Panel("upper", ["a", "b"], rows)] * 2, title="title", footer="word " * 200, side=64)
    colours = {colour: count for count, colour in picture.getcolors(1 << 24)}
    assert colours[(0, 0, 255)] == 8 * 64 * 64
    assert colours[(200, 69, 45)] == 2 * 4 * 3 * (64 + 3)  # two frames, three pixels wide
    edge = pixels(picture)
    assert (edge[:, -20:] == 255).all() and (edge[-20:] == 255).all()  # no text runs out of the canvas
    assert grid([Panel("upper", ["a", "b"], rows)], side=64).height < picture.height


@pytest.mark.parametrize("text", ["short", "far too long a label to stand over a narrow column", "", "é中→"])
def test_text_is_shortened_to_its_column(text):
    shown = grids._shorten(grids.drawable(text), 14, 100)
    assert grids._font(14).getlength(shown) <= 100
    assert shown == text or shown.endswith("…") or shown == "e??"


def test_letters_are_smaller_before_they_are_cut():
    cell = PIL.Image.new("RGB", (8, 8), "blue")
    captions = ["0 % to 1 %", "100 % to 100 %", "far too long a name, 3 %"]
    drawing = grids.arrange([Panel("", [], [[Cell(cell, caption) for caption in captions]])], "", "", 64)
    found = [mark for mark in drawing.marks if isinstance(mark, grids.Text)]
    assert [mark.text for mark in found[:2]] == captions[:2] and found[2].text.endswith("…")
    assert found[0].size == 13 > found[1].size > found[2].size == 8


def test_svg_holds_pictures_and_texts(tmp_path):
    noise = PIL.Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (6, 9, 3), numpy.uint8))
    panel = Panel("über <&> alles", ["é"], [[Cell(noise, "中→", framed=True)], [Cell(None), Cell(noise)]])
    grids.save(tmp_path / "a" / "grid.svg", [panel], "title", "foot\x07er", side=90)
    root = ElementTree.parse(tmp_path / "a" / "grid.svg").getroot()
    kind = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.iter(f"{kind}text")] == ["title", "über <&> alles", "é", "中→", "foot er"]
    images = list(root.iter(f"{kind}image"))
    assert [(image.get("width"), image.get("height")) for image in images] == [("90", "60")] * 2
    stored = base64.b64decode(images[0].get("href").removeprefix("data:image/png;base64,"))
    with PIL.Image.open(io.BytesIO(stored)) as picture:
        assert (pixels(picture) == pixels(noise)).all()
    frame = [rect for rect in root.iter(f"{kind}rect") if rect.get("stroke")]
    assert len(frame) == 1 and float(frame[0].get("width")) == 90 + 3
    assert (root.get("width"), root.get("height")) == tuple(map(str, grid([panel], "title", "footer", 90).size))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["grid.svg"]


def test_a_gap_is_white_and_its_neighbour_stays_in_its_column():
    black = PIL.Image.new("RGB", (8, 8))
    drawn = pixels(grid([Panel("", [], [[Cell(black), Cell(black)], [Cell(None), Cell(black)]])], side=64))
    columns = (drawn == 0).all(2).sum(axis=0)
    assert set(columns[24 : 24 + 64]) == {64} and set(columns[24 + 72 : 24 + 72 + 64]) == {128}


def test_a_figure_beyond_all_bounds_is_refused():
    grids.require_room(7, 20, 192)
    with pytest.raises(SurgeonError, match=r"12384 x 20640 pixels. Give a smaller --side"):
        grids.require_room(12, 20, 1024)
    for ending in ("svg", "PNG", "jpg"):
        grids.require_format(Path(f"f.{ending}"))
    with pytest.raises(SurgeonError, match="names a picture format"):
        grids.require_format(Path("f.txt"))
