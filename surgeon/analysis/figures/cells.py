"""The cells of a figure for one photo: along steps, temperatures, classes and units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from surgeon.runtime.photos import image_of
from surgeon.runtime.targets import Target, cotangents

if TYPE_CHECKING:
    import numpy

    from surgeon.analysis.figures.grids import Cell
    from surgeon.runtime.session import AscentState, Session

Tick = Callable[[], None]
Settings = dict[str, Any]
"""The settings of `Session.steps`: steps, step_size, radius, temperature."""


def of_photo(session: Session, image: numpy.ndarray, caption: str = "") -> Cell:
    """The photo itself."""
    from surgeon.analysis.figures.grids import Cell
    from surgeon.runtime.pictures import to_picture

    return Cell(to_picture(image, image_of(session)), caption)


def climbed(
    session: Session,
    image: numpy.ndarray,
    own: Target | None,
    row: Sequence[Target],
    settings: Settings,
    clip: float,
    named: bool,
    tick: Tick,
) -> list[Cell]:
    """The change that an ascent adds for each class or unit of `row`, in one batch, over its probability or value.

    `own` is framed; captions have names where columns have none (`named`).
    """
    from surgeon.analysis.figures.grids import Cell
    from surgeon.runtime.pictures import difference

    first, last = _ends(session, image, row, settings, tick)
    cells = []
    for place, target in enumerate(row):
        change = _change(first, last, place, target)
        caption = f"{name(session, target)}, {change}" if named else change
        cells.append(Cell(difference(image, last.perturbed[place], clip), caption, target == own))
    return cells


def after_steps(
    session: Session, image: numpy.ndarray, target: Target, numbers: Sequence[int], settings: Settings, tick: Tick
) -> list[Cell]:
    """The photo after so many steps towards `target`, over its probability or value then."""
    states = {}
    for step in session.steps(image[None], cotangents(session, [target], image), **{**settings, "steps": numbers[-1]}):
        if step.number in numbers:
            states[step.number] = of_photo(session, step.perturbed[0], _standing(step, 0, target))
        tick()
    return [states[number] for number in numbers]


def at_temperatures(
    session: Session,
    image: numpy.ndarray,
    target: Target,
    values: Sequence[float],
    settings: Settings,
    clip: float,
    tick: Tick,
) -> list[Cell]:
    """The change that an ascent towards `target` adds at each temperature."""
    return [
        cell
        for value in values
        for cell in climbed(session, image, None, [target], {**settings, "temperature": value}, clip, False, tick)
    ]


def of_units(
    session: Session, image: numpy.ndarray, units: Sequence[Target], settings: Settings, clip: float, tick: Tick
) -> tuple[list[Cell], list[Cell]]:
    """The pullback of each class or unit at the photo, and the change that its ascent adds."""
    from surgeon.analysis.figures.grids import Cell
    from surgeon.runtime.pictures import difference, heat

    first, last = _ends(session, image, units, settings, tick)
    above, beneath = [], []
    for place, unit in enumerate(units):
        above.append(Cell(heat(first.pullback[place], clip), name(session, unit)))
        beneath.append(Cell(difference(image, last.perturbed[place], clip), _change(first, last, place, unit)))
    return above, beneath


def strongest(session: Session, image: numpy.ndarray, count: int) -> dict[str, list[Target]]:
    """The `count` classes or channels with the largest outputs for `image`, of each layer, strongest first.

    A channel counts by the sum over its map, the objective of its ascent.
    """
    import numpy

    output = session.output(image[None])
    if session.has_classes:
        return {"the output": [int(index) for index in numpy.argsort(-output[0], kind="stable")[:count]]}
    by_layer: dict[str, list[Target]] = {}
    for layer, values in session.split(output).items():
        sums = values[0].reshape(len(values[0]), -1).sum(axis=1) if values.ndim > 1 else values
        order = numpy.argsort(-sums, kind="stable")[:count]
        many = len(session.layers) > 1
        by_layer[layer] = [(layer, int(channel)) if many else (int(channel),) for channel in order]
    return by_layer


def name(session: Session, target: Target) -> str:
    """The first of a label's names, and a unit's place: cells are narrow."""
    names, at, place = session.label(target).partition(" at ")
    return names.split(",")[0] + at + place


def _ends(
    session: Session, image: numpy.ndarray, targets: Sequence[Target], settings: Settings, tick: Tick
) -> tuple[AscentState, AscentState]:
    """The first and last states of the ascents from `image` towards `targets`, as one batch."""
    import numpy

    start = numpy.repeat(image[None], len(targets), axis=0)
    first = last = None
    for step in session.steps(start, cotangents(session, targets, image), **settings):
        first, last = first or step, step
        tick()
    assert first is not None and last is not None
    return first, last


def _standing(step: AscentState, place: int, target: Target) -> str:
    """The probability of a class, or the score of a unit."""
    from surgeon.runtime.output_units import softmax

    if isinstance(target, int):
        return f"{100 * softmax(step.output)[place, target]:.0f} %"
    score = float(step.score[place])
    return f"{score:.0f}" if 100 <= abs(score) < 1e6 else f"{score:.3g}"


def _change(first: AscentState, last: AscentState, place: int, target: Target) -> str:
    return f"{_standing(first, place, target)} to {_standing(last, place, target)}"
