"""`surgeon figure`: photos against target classes, along steps and temperatures, and atlases of units."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.cli.drawing import Drawing, clip, columns, shared_options
from surgeon.cli.groups import HelpfulGroup
from surgeon.runtime.targets import Target, predicted, read_targets

if TYPE_CHECKING:
    from surgeon.runtime.session import Session

EXAMPLES = """\b
Examples:
  surgeon figure grid exported/lite0 cat.jpg fish.jpg -o figure.png
  surgeon figure steps exported/lite0 cat.jpg --target goldfish -o steps.svg
  surgeon figure temperatures exported/lite0 cat.jpg -o temperatures.png
  surgeon figure units exported/lite0-layer cat.jpg --count 12 -o atlas.png\n"""

GRID_EXAMPLES = """\b
Examples:
  surgeon figure grid exported/lite0 cat.jpg fish.jpg -o figure.png
  surgeon figure grid exported/lite0 *.jpg --against exported/lite0-hard --target tench --target "golf ball"\n"""

STEPS_EXAMPLES = """\b
Examples:
  surgeon figure steps exported/lite0 cat.jpg --target goldfish -o steps.svg
  surgeon figure steps exported/lite0 *.jpg --steps 0,1,5,20\n"""

TEMPERATURES_EXAMPLES = """\b
Examples:
  surgeon figure temperatures exported/lite0 cat.jpg -o temperatures.png
  surgeon figure temperatures exported/lite0 cat.jpg --temperatures 0.1,0.3,1 --clip 0.5\n"""

UNITS_EXAMPLES = """\b
Examples:
  surgeon figure units exported/lite0-layer cat.jpg --count 12 -o atlas.png
  surgeon figure units exported/lite0 cat.jpg --count 5 --columns 5\n"""


@click.group("figure", cls=HelpfulGroup, epilog=EXAMPLES)
def command() -> None:
    """Draw what BUNDLE's pullbacks add to photos: a grid of classes, strips along steps or temperatures, or units."""


@command.command("grid", short_help="Photos against classes, ordinary gradients beneath.", epilog=GRID_EXAMPLES)
@options.targets
@options.units
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
@columns
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the random class of the last column.")
@clip
@shared_options
def grid(
    targets: tuple[str, ...],
    units: tuple[str, ...],
    steps: int | None,
    step_size: float | None,
    radius: float | None,
    temperature: float | None,
    against: Path | None,
    columns: int,
    seed: int,
    clip: float,
    **shared: Any,
) -> None:
    """Draw what BUNDLE's pullbacks add to each PHOTO for each class, and beneath it what ordinary gradients add.

    One row per photo: the photo, then a cell per class, each the difference after the steps, scaled to its own range.
    The classes are the photos' own (the most probable one of each, framed on the diagonal), or those of --target, and
    last one at random. With more photos than --columns, the first column holds each photo's own class. Of a bundle that
    was exported with --at, the columns are those of --unit. Ctrl-C keeps the photos that are done.
    """
    from surgeon.analysis.figures import layouts

    drawing = Drawing(**shared)
    session = drawing.session
    plain = drawing.load(against) if against else None
    chosen = read_targets(session, targets, units)
    layouts.ordinary(session, plain)  # raises what is wrong before photos are looked at
    own = drawing.each(lambda image: predicted(session, image) if session.has_classes else None)
    extra = _random_class(session, [*own, *chosen], seed) if session.has_classes else None
    rows = layouts.layout(own, chosen, columns, extra)
    settings = {"steps": steps, "step_size": step_size, "radius": radius, "temperature": temperature}
    drawing.draw(layouts.of_classes(session, plain, drawing.images, own, rows, extra, settings, clip))


def _step_count(text: str) -> int:
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is no number of steps. Write a list such as 0,1,5,20.")
    return int(text)


@command.command("steps", short_help="Photos after so many steps.", epilog=STEPS_EXAMPLES)
@options.targets
@options.units
@click.option(
    "--steps",
    "numbers",
    type=options.CommaList(_step_count, "N,N,...", ascending=True),
    default="0,1,2,5,10,20",
    show_default=True,
    help="The numbers of steps, a column for each.",
)
@options.step_size
@options.radius
@options.temperature
@shared_options
def steps(
    targets: tuple[str, ...],
    units: tuple[str, ...],
    numbers: tuple[int, ...],
    step_size: float | None,
    radius: float | None,
    temperature: float | None,
    **shared: Any,
) -> None:
    """Draw each PHOTO after so many steps towards its class, a column for each number of steps.

    The class is the network's most probable one, or --target, or --unit: one for all photos, or one for each. Ctrl-C
    keeps the photos that are done.
    """
    from surgeon.analysis.figures import layouts

    if numbers[-1] < 1:
        raise click.UsageError("--steps 0 takes no step: add a larger number.")
    drawing = Drawing(**shared)
    aims = drawing.aims(targets, units)
    settings = {"step_size": step_size, "radius": radius, "temperature": temperature}
    drawing.draw(layouts.of_steps(drawing.session, drawing.images, aims, numbers, settings))


@command.command("temperatures", short_help="What ascents add at each temperature.", epilog=TEMPERATURES_EXAMPLES)
@options.targets
@options.units
@click.option(
    "--temperatures",
    type=options.CommaList(options.number(above=0), "T,T,...", ascending=True),
    default="0.03,0.1,0.3,1,3",
    show_default=True,
    help="The temperatures, a column for each.",
)
@options.steps
@options.step_size
@options.radius
@clip
@shared_options
def temperatures(
    targets: tuple[str, ...],
    units: tuple[str, ...],
    temperatures: tuple[float, ...],
    steps: int | None,
    step_size: float | None,
    radius: float | None,
    clip: float,
    **shared: Any,
) -> None:
    """Draw what ascents add to each PHOTO towards its class, a column for each temperature of the gates.

    The class is the network's most probable one, or --target, or --unit: one for all photos, or one for each. Ctrl-C
    keeps the photos that are done.
    """
    from surgeon.analysis.figures import layouts

    drawing = Drawing(**shared)
    layouts.require_temperature(drawing.session)
    aims = drawing.aims(targets, units)
    settings = {"steps": steps, "step_size": step_size, "radius": radius}
    drawing.draw(layouts.of_temperatures(drawing.session, drawing.images, aims, temperatures, settings, clip))


@command.command("units", short_help="The strongest units, their pullbacks and ascents.", epilog=UNITS_EXAMPLES)
@click.option(
    "--count", type=click.IntRange(1, 256), default=12, show_default=True, help="How many of the strongest are drawn."
)
@options.steps
@options.step_size
@options.radius
@options.temperature
@columns
@clip
@shared_options
def units(
    count: int,
    steps: int | None,
    step_size: float | None,
    radius: float | None,
    temperature: float | None,
    columns: int,
    clip: float,
    **shared: Any,
) -> None:
    """Draw the strongest units of each layer that BUNDLE is cut at (--at), or classes: their pullbacks and ascents.

    A block for each PHOTO and layer. A channel counts by the sum over its map. Ctrl-C keeps the photos that are done.
    """
    from surgeon.analysis.figures import cells, layouts

    drawing = Drawing(**shared)
    session = drawing.session
    strongest = drawing.each(lambda image: cells.strongest(session, image, count))
    settings = {"steps": steps, "step_size": step_size, "radius": radius, "temperature": temperature}
    drawing.draw(layouts.of_units(session, drawing.photos, drawing.images, strongest, columns, settings, clip))


def _random_class(session: Session, targets: Sequence[Target | None], seed: int) -> int | None:
    """A class that no photo has; None where every class is taken."""
    free = sorted({*range(session.classes)}.difference(targets))
    return random.Random(seed).choice(free) if free else None
