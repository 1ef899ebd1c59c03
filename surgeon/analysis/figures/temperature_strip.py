"""The strip of `surgeon calibrate`: what ascents add at each temperature, for a person to judge. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surgeon.analysis.evaluate.calibration import Seen, Tried
from surgeon.analysis.figures import grids
from surgeon.analysis.figures.grids import Cell, Panel
from surgeon.bundle.units import Array
from surgeon.runtime.photos import image_of
from surgeon.runtime.pictures import difference, to_picture
from surgeon.runtime.session import Session

CLIP = 0.5
"""Percentage of a cell's values that is cut at either end, as in the README's figure."""


def save(
    path: Path,
    session: Session,
    images: Sequence[Array],
    tried: Sequence[Tried],
    best: Tried | None,
    seen: Sequence[Sequence[Seen]],
    side: int,
    steps: int | None,
) -> None:
    """Draw a row for each photo and a column for each temperature: a panel of global ones, and one per gate.

    `seen` has a list for each of `tried`, with an item for each of `images` [C, H, W]; `best` is framed.
    """
    layout, panels = image_of(session), []

    def cell(image: Array, place: int, row: int) -> Cell:
        return Cell(difference(image, seen[place][row].perturbed, CLIP), framed=tried[place] is best)

    for per_gate, title in (
        (False, "One T for all gates"),
        (True, "T = t times the standard deviation of each gate's input"),
    ):
        places = [place for place, trial in enumerate(tried) if trial.candidate.per_gate == per_gate]
        rows = [
            [Cell(to_picture(image, layout)), *(cell(image, place, row) for place in places)]
            for row, image in enumerate(images)
        ]
        if places:
            panels.append(Panel(title, ["photo", *(tried[place].candidate.name for place in places)], rows))
    count = steps or session.manifest.defaults.steps
    footer = (
        f"Each cell: what {count} steps towards the network's most probable class add to the photo, scaled to its own "
        f"range less {CLIP:g} % at either end."
    ) + (" Framed: the temperature that the criteria choose." if best else "")
    grids.save(path, panels, session.manifest.model.name, footer, side)
