"""`surgeon figure`: the paper's grid, photos against target classes, over the same grid of ordinary gradients."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.cli.run import (
    Target,
    cotangents,
    image_of,
    predicted,
    read_photo,
    read_targets,
    spare_photos,
    takes_temperature,
)
from surgeon.cli.sameness import require_same_network
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    import numpy

    from surgeon.pictures import Cell, Panel
    from surgeon.runtime import Session

ALMOST_ZERO = 1e-6
"""The temperature whose soft gates stand in for hard ones: sigmoid(z/T) is a step for all but the tiniest z."""


EXAMPLES = """\b
Examples:
  surgeon figure exported/lite0 cat.jpg fish.jpg -o figure.png
  surgeon figure exported/lite0 *.jpg --against exported/lite0-hard --target tench --target "golf ball"\n"""


@click.command("figure", epilog=EXAMPLES)
@options.bundle
@options.photos
@options.targets
@options.units
@options.size
@options.steps
@options.step_size
@options.radius
@options.temperature
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Bundle of the same model with hard gates, for the lower grid.  [default: the same bundle at T near 0]",
)
@click.option("--columns", type=click.IntRange(min=1), default=6, show_default=True, help="Most target classes shown.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the random class of the last column.")
@click.option(
    "--clip",
    type=click.FloatRange(0, 49),
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    help="Cut this share of a cell's values at either end before scaling it: more contrast than the paper's.",
)
@click.option("--side", type=click.IntRange(32, 1024), default=192, show_default=True, help="Pixels of a cell's side.")
@options.device
@options.threads
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("exported/figure.png"), show_default=True)
@options.as_json
def command(
    bundle: Path,
    photos: tuple[Path, ...],
    targets: tuple[str, ...],
    units: tuple[str, ...],
    size: options.Size | None,
    against: Path | None,
    columns: int,
    seed: int,
    clip: float,
    side: int,
    device: str,
    threads: int | None,
    output: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Draw what BUNDLE's pullbacks add to each PHOTO for each class, and beneath it what ordinary gradients add.

    One row per photo: the photo, then a cell per class, each the difference after the steps, scaled to its own range.
    The classes are the photos' own (what the network sees in them; framed on the diagonal), or those of --target, and
    last one at random. With more photos than --columns, the first column holds each photo's own class. Of a bundle that
    was exported with --at, the columns are those of --unit.
    """
    from surgeon.cli import screen
    from surgeon.pictures import format_of, grid, save
    from surgeon.runtime import load

    format_of(output)  # before the work, not after it
    spare_photos(photos, [output])
    session = load(bundle, device, threads)
    plain = load(against, device, threads) if against else None
    if session.manifest.recipe.objective == "energy":
        raise SurgeonError(f"the objective of {bundle} is energy, which has no target classes", "See `surgeon run`")
    if session.others:
        raise SurgeonError(f"{bundle} takes {session.others[0].name} beside the photo", "See `surgeon run`")
    lower = ordinary(session, plain)
    given = read_targets(session, targets, units)
    images = [read_photo(session, photo, size) for photo in photos]
    with screen.progress() as progress:
        task = progress.add_task("looking", total=len(photos))
        own: list[Target | None] = []
        for image in images:
            own.append(predicted(session, image) if session.has_classes else None)
            progress.advance(task)
        extra = _random_class(session, [*own, *given], seed) if session.has_classes else None
        rows = layout(own, given, columns, extra)
        count = settings["steps"] or session.manifest.defaults.steps
        progress.update(task, description="climbing", completed=0, total=(1 + bool(lower)) * len(rows) * (count + 1))

        def panel(title: str, climber: Session, temperature: float | None) -> Panel:
            here = {**settings, "temperature": temperature}
            return draw_panel(title, climber, images, own, rows, here, clip, lambda: progress.advance(task))

        panels = [panel(upper_title(session, settings), session, settings["temperature"])]
        if lower:
            panels.append(panel(*lower))
    save(
        grid(panels, title=session.manifest.model.name, footer=footer(session, settings, extra, clip), side=side),
        output,
    )
    if as_json:
        drawn = zip(photos, images, own, rows, strict=True)
        cells = [
            {"photo": str(photo), "size": list(image.shape[1:]), "own": mine, "targets": row}
            for photo, image, mine, row in drawn
        ]
        screen.print_json({"figure": str(output), "panels": [panel.title for panel in panels], "rows": cells})
    else:
        click.echo(f"figure: {output}")


def ordinary(session: Session, plain: Session | None) -> tuple[str, Session, float | None] | None:
    """Title, session and temperature of the lower grid; None where the upper one shows ordinary gradients already."""
    if plain is not None:
        _require_same(session, plain)
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
    last = [] if extra is None else [extra]
    if given or len(shared) <= columns:
        return [[*shared[:columns], *last] for _ in own]
    ordered = [[mine, *[other for other in shared if other != mine]][:columns] for mine in own if mine is not None]
    return [[*row, *last] for row in ordered]


def draw_panel(
    title: str,
    session: Session,
    images: Sequence[numpy.ndarray],
    own: Sequence[Target | None],
    rows: Sequence[Sequence[Target]],
    settings: dict[str, Any],
    clip: float,
    tick: Callable[[], None],
) -> Panel:
    """One grid: each photo's row is one batch of ascents, a class or unit each."""
    from surgeon.pictures import Panel, to_picture

    drawn = []
    same = all(list(row) == list(rows[0]) for row in rows)
    for image, mine, row in zip(images, own, rows, strict=True):
        cells = _climb(session, image, mine, row, settings, clip, named=not same, tick=tick)
        caption = "" if mine is None else _name(session, mine)
        drawn.append([_cell(to_picture(image, image_of(session)), caption), *cells])
    headings = ["photo", *[_name(session, index) for index in rows[0]]]
    if not same:
        headings = ["photo", "its own class", *[""] * (len(rows[0]) - 1)]
    return Panel(title, headings, drawn)


def _climb(
    session: Session,
    image: numpy.ndarray,
    own: Target | None,
    row: Sequence[Target],
    settings: dict[str, Any],
    clip: float,
    named: bool,
    tick: Callable[[], None],
) -> list[Cell]:
    """The cells of one photo: what was added for each class or unit, and its probability or value before and after."""
    import numpy

    from surgeon.pictures import difference
    from surgeon.runtime import softmax

    start = numpy.repeat(image[None], len(row), axis=0)
    taken, cells = [], []
    for step in session.steps(start, cotangents(session, row, image), **settings):
        taken.append(step)
        del taken[1:-1]
        tick()
    for place, index in enumerate(row):
        if isinstance(index, int):
            before, after = (100 * softmax(step.output)[place, index] for step in taken)
            change = f"{before:.0f} % to {after:.0f} %"
        else:
            change = " to ".join(f"{step.score[place]:.3g}" for step in taken)
        caption = f"{_name(session, index)}, {change}" if named else change
        cells.append(_cell(difference(image, step.perturbed[place], clip), caption, framed=index == own))
    return cells


def upper_title(session: Session, settings: dict[str, Any]) -> str:
    """What the upper grid shows, and at which temperature."""
    gate = session.manifest.recipe.gate
    temperature = settings["temperature"] or session.manifest.defaults.temperature
    tempered = takes_temperature(session)
    if gate == "soft" and session.manifest.recipe.temperatures:
        return "Excitation pullbacks (gates with temperatures of their own)"
    if gate == "soft" and tempered:
        return f"Excitation pullbacks (T = {temperature:g})"
    if gate in ("soft", "hard") and not tempered:
        return "Ordinary gradients (hard gates)" if gate == "hard" else "Ordinary gradients (no gate is soft)"
    return f"{gate.capitalize()} gates" + (f", soft pools (T = {temperature:g})" if tempered else "")


def footer(session: Session, settings: dict[str, Any], extra: Target | None, clip: float) -> str:
    """How the cells were made."""
    defaults = session.manifest.defaults
    steps, size, radius = (settings[name] or getattr(defaults, name) for name in ("steps", "step_size", "radius"))
    cut = f" less {clip:g} % at either end" if clip else ""
    shown = "the class's probability before and after. Framed: the class that the network sees in the photo."
    if not session.has_classes:
        where = " and ".join(session.manifest.recipe.at) or "the output"
        shown = f"the unit's score at {where} before and after."
    last = "" if extra is None else f" Last column: a random class ({_name(session, extra)})."
    return (
        f"Each cell: what {steps} steps of length {size:g} within radius {radius:g} add to the photo, scaled to its "
        f"own range{cut}; beneath it {shown}{last}"
    )


def _cell(picture: Any, caption: str, framed: bool = False) -> Cell:
    from surgeon.pictures import Cell

    return Cell(picture, caption, framed)


def _name(session: Session, index: Target) -> str:
    """The first of a label's names: cells are narrow."""
    return session.label(index).split(",")[0]


def _random_class(session: Session, others: Sequence[Target | None], seed: int) -> int | None:
    """A class that no photo has; None where every class is taken."""
    free = sorted({*range(session.classes)}.difference(others))
    return random.Random(seed).choice(free) if free else None


def _require_same(session: Session, plain: Session) -> None:
    """Raise SurgeonError unless `plain` is the same network with hard gates, taking the same photos."""
    recipe = plain.manifest.recipe
    if recipe.gate != "hard" or recipe.pool != "hard":
        raise SurgeonError(
            f"the gates of {plain.bundle.path} are {recipe.gate}, its pools {recipe.pool}: not hard",
            "Export one with `--gate hard`",
        )
    require_same_network(session, plain)
