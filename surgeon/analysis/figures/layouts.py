"""The kinds of figures: the columns, titles and cost of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.analysis.figures import cells
from surgeon.analysis.figures.cells import Settings, Tick, name
from surgeon.analysis.same_network import require_same_network
from surgeon.errors import SurgeonError
from surgeon.runtime.targets import Target, takes_temperature

if TYPE_CHECKING:
    import numpy

    from surgeon.analysis.figures.grids import Cell, Panel
    from surgeon.runtime.session import Session

ALMOST_ZERO = 1e-6
"""The temperature whose soft gates stand in for hard ones: sigmoid(z/T) is a step for all but the tiniest z."""


@dataclass(frozen=True)
class Figure:
    """A figure of several photos, to be drawn photo by photo; `joined` makes one panel of those with one title."""

    draw: Callable[[int, Tick], list[Panel]]  # of a photo, by its place
    footer: str
    columns: int
    rows: int  # of each photo
    ticks: int  # steps that each photo takes
    facts: Sequence[dict[str, Any]]  # of each photo, for scripts


def joined(drawn: Sequence[Sequence[Panel]]) -> list[Panel]:
    """The panels of several photos, rows of one title beneath each other."""
    by_title: dict[str, Panel] = {}
    for panel in (panel for panels in drawn for panel in panels):
        above = by_title.get(panel.title)
        by_title[panel.title] = replace(above, rows=[*above.rows, *panel.rows]) if above else panel
    return list(by_title.values())


# --- classes: the paper's grid, and that of ordinary gradients beneath it


def of_classes(
    session: Session,
    plain: Session | None,
    images: Sequence[numpy.ndarray],
    own: Sequence[Target | None],
    rows: Sequence[Sequence[Target]],
    extra: Target | None,
    settings: Settings,
    clip: float,
) -> Figure:
    """A row for each photo and a column for each class; `rows` are each photo's classes, `extra` is the random one."""
    from surgeon.analysis.figures.grids import Panel

    grids = [(upper_title(session, settings), session, settings["temperature"])]
    lower = ordinary(session, plain)
    grids += [lower] if lower else []
    same = all(list(row) == list(rows[0]) for row in rows)
    headings = ["photo", *[name(session, target) for target in rows[0]]]
    if not same:
        headings = ["photo", "its own class", *[""] * (len(rows[0]) - 1)]

    def row(climber: Session, temperature: float | None, place: int, tick: Tick) -> list[Cell]:
        image, mine = images[place], own[place]
        photo = cells.of_photo(session, image, "" if mine is None else name(session, mine))
        here = {**settings, "temperature": temperature}
        return [photo, *cells.climbed(climber, image, mine, rows[place], here, clip, not same, tick)]

    def draw(place: int, tick: Tick) -> list[Panel]:
        return [
            Panel(title, headings, [row(climber, temperature, place, tick)]) for title, climber, temperature in grids
        ]

    last = "" if extra is None else f" Last column: a random class ({name(session, extra)})."
    shown = "the class's probability before and after. Framed: the photo's most probable class."
    if not session.has_classes:
        where = " and ".join(session.manifest.recipe.at) or "the output"
        shown = f"the unit's score at {where} before and after."
    text = f"Each cell: what {_pace(session, settings)} add to the photo, {_scaled(clip)}; beneath it {shown}{last}"
    ticks = len(grids) * (_count(session, settings) + 1)
    facts = [{"own": mine, "targets": list(row)} for mine, row in zip(own, rows, strict=True)]
    return Figure(draw, text, 1 + len(rows[0]), len(grids), ticks, facts)


def ordinary(session: Session, plain: Session | None) -> tuple[str, Session, float | None] | None:
    """Title, session and temperature of the lower grid; None where the upper one shows ordinary gradients already."""
    if plain is not None:
        recipe = plain.manifest.recipe
        if recipe.gate != "hard" or recipe.pool != "hard":
            raise SurgeonError(
                f"the gates of {plain.bundle.path} are {recipe.gate}, its pools {recipe.pool}: not hard",
                "Export one with `--gate hard`",
            )
        require_same_network(session, plain)
        return f"Ordinary gradients (hard gates, from {plain.bundle.path.name})", plain, None
    gate = session.manifest.recipe.gate
    if session.manifest.recipe.temperatures and session.manifest.recipe.temperature_input == "scalar":
        raise SurgeonError(
            f"the bundle {session.bundle.path} fixes temperatures of gates, which no temperature makes hard",
            "Give a bundle of the same model with hard gates: --against BUNDLE",
        )
    if gate in ("soft", "hard") and not takes_temperature(session):
        return None
    if gate not in ("soft", "hard"):
        raise SurgeonError(
            f"the bundle {session.bundle.path} has {gate} gates, and no temperature makes them hard",
            "Give a bundle of the same model with hard gates: --against BUNDLE",
        )
    return f"Ordinary gradients (the same artifact at T = {ALMOST_ZERO:g})", session, ALMOST_ZERO


def layout(
    own: Sequence[Target | None], given: Sequence[Target], columns: int, extra: Target | None
) -> list[list[Target]]:
    """Targets, a list per photo: the paper's square where it fits, else own class first, then shared ones."""
    shared = list(dict.fromkeys(given or [mine for mine in own if mine is not None]))
    if given and len(shared) > columns:
        raise SurgeonError(f"{len(shared)} classes or units do not fit into {columns} columns", "Give more --columns")
    last = [] if extra is None else [extra]
    if given or len(shared) <= columns:
        return [[*shared, *last] for _ in own]
    ordered = [[mine, *[other for other in shared if other != mine]][:columns] for mine in own if mine is not None]
    return [[*row, *last] for row in ordered]


# --- steps and temperatures: a strip for each photo


def of_steps(
    session: Session,
    images: Sequence[numpy.ndarray],
    targets: Sequence[Target],
    numbers: Sequence[int],
    settings: Settings,
) -> Figure:
    """A row for each photo and a column for each number of steps: the photo then."""
    from surgeon.analysis.figures.grids import Panel

    headings = ["the photo" if number == 0 else f"{number} step{'s' * (number > 1)}" for number in numbers]

    def draw(place: int, tick: Tick) -> list[Panel]:
        row = cells.after_steps(session, images[place], targets[place], numbers, settings, tick)
        strip = [_prefixed(row[0], name(session, targets[place])), *row[1:]]
        return [Panel(upper_title(session, settings), headings, [strip])]

    settings = {**settings, "steps": numbers[-1]}
    text = f"Each photo after steps of length {_length(session, settings)}; beneath it {_of_what(session)} then."
    facts = [{"target": target, "steps": list(numbers)} for target in targets]
    return Figure(draw, text, len(numbers), 1, numbers[-1] + 1, facts)


def require_temperature(session: Session) -> None:
    """Raise SurgeonError where the bundle takes no temperature."""
    if not takes_temperature(session):
        raise SurgeonError(f"the bundle {session.bundle.path} takes no temperature", "Give one with soft gates")


def of_temperatures(
    session: Session,
    images: Sequence[numpy.ndarray],
    targets: Sequence[Target],
    values: Sequence[float],
    settings: Settings,
    clip: float,
) -> Figure:
    """A row for each photo and a column for each temperature: what is added at it."""
    from surgeon.analysis.figures.grids import Panel

    headings = ["photo", *[f"T = {value:g}" for value in values]]
    gate = session.manifest.recipe.gate
    what = "Excitation pullbacks" if gate == "soft" else f"{gate.capitalize()} gates, soft pools,"
    title = f"{what} by temperature"

    def draw(place: int, tick: Tick) -> list[Panel]:
        image, target = images[place], targets[place]
        row = cells.at_temperatures(session, image, target, values, settings, clip, tick)
        strip = [cells.of_photo(session, image, name(session, target)), *row]
        return [Panel(title, headings, [strip])]

    text = (
        f"Each cell: what {_pace(session, settings)} add to the photo at temperature T, {_scaled(clip)}; beneath it "
        f"{_of_what(session)} before and after."
    )
    facts = [{"target": target, "temperatures": list(values)} for target in targets]
    return Figure(draw, text, 1 + len(values), 1, len(values) * (_count(session, settings) + 1), facts)


# --- units: an atlas of each photo


def of_units(
    session: Session,
    photos: Sequence[Path],
    images: Sequence[numpy.ndarray],
    strongest: Sequence[dict[str, list[Target]]],
    columns: int,
    settings: Settings,
    clip: float,
) -> Figure:
    """A block for each photo and layer: its strongest units' pullbacks, and beneath each what its ascent adds."""
    from surgeon.analysis.figures.grids import Cell, Panel

    gap = Cell(None)

    def panel(place: int, layer: str, units: Sequence[Target], tick: Tick) -> Panel:
        above, beneath = cells.of_units(session, images[place], units, settings, clip, tick)
        rows = []
        for at in range(0, len(units), columns):
            first = cells.of_photo(session, images[place]) if at == 0 else gap
            rows += [[first, *above[at : at + columns]], [gap, *beneath[at : at + columns]]]
        what = "class" if session.has_classes else "unit"
        what += ("es" if session.has_classes else "s") if len(units) > 1 else ""
        many = f"{len(units)} strongest {what}" if len(units) > 1 else f"strongest {what}"
        return Panel(f"{photos[place].name}: the {many} of {layer or 'the output'}", [], rows)

    def draw(place: int, tick: Tick) -> list[Panel]:
        return [panel(place, layer, units, tick) for layer, units in strongest[place].items()]

    text = (
        f"Above: the pullback at the photo, zero being mid-grey. Beneath: what {_pace(session, settings)} add to the "
        f"photo, {_scaled(clip)}, and {_of_what(session)} before and after."
    )
    most = max(len(units) for layers in strongest for units in layers.values())
    rows = sum(2 * -(-len(units) // columns) for units in strongest[0].values())
    ticks = len(strongest[0]) * (_count(session, settings) + 1)
    facts = [{"strongest": layers} for layers in strongest]
    return Figure(draw, text, 1 + min(columns, most), rows, ticks, facts)


# --- words


def upper_title(session: Session, settings: Settings) -> str:
    """The title of this bundle's pictures: its gates, and their temperature."""
    manifest, gate = session.manifest, session.manifest.recipe.gate
    pairs = zip(manifest.gates, manifest.gate_temperatures(settings["temperature"]), strict=True)
    temperatures = {temperature for site, temperature in pairs if site.soft}
    which = f"T = {next(iter(temperatures)):g}" if len(temperatures) == 1 else "gates with temperatures of their own"
    if gate == "soft" and temperatures:
        return f"Excitation pullbacks ({which})"
    if gate in ("soft", "hard") and not temperatures:
        return "Ordinary gradients (hard gates)" if gate == "hard" else "Ordinary gradients (no gate is soft)"
    return f"{gate.capitalize()} gates" + (f", soft pools ({which})" if temperatures else "")


def _prefixed(cell: Cell, text: str) -> Cell:
    from surgeon.analysis.figures.grids import Cell

    return Cell(cell.picture, f"{text}, {cell.caption}", cell.framed)


def _count(session: Session, settings: Settings) -> int:
    count: int = settings["steps"] or session.manifest.defaults.steps
    return count


def _length(session: Session, settings: Settings) -> str:
    size, radius = (settings[key] or getattr(session.manifest.defaults, key) for key in ("step_size", "radius"))
    return f"{size:g} within radius {radius:g}"


def _pace(session: Session, settings: Settings) -> str:
    count = _count(session, settings)
    return f"{count} step{'s' * (count > 1)} of length {_length(session, settings)}"


def _of_what(session: Session) -> str:
    return "the class's probability" if session.has_classes else "the unit's score"


def _scaled(clip: float) -> str:
    return "scaled to its own range" + (f" less {clip:g} % at either end" if clip else "")
