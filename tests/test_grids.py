from __future__ import annotations

import numpy
import PIL.Image
import pytest

from surgeon import grids
from surgeon.grids import Cell, Panel, grid


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
