"""`surgeon figure`: photos against target classes, along steps and temperatures, and atlases of units."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt
from surgeon.runtime.targets import Target, predicted, read_targets

if TYPE_CHECKING:
    import numpy

    from surgeon.runtime.session import Session

EXAMPLES = """\b
Examples:
  surgeon figure exported/lite0 cat.jpg fish.jpg -o figure.png
  surgeon figure exported/lite0 *.jpg --against exported/lite0-hard --target tench --target "golf ball"
  surgeon figure exported/lite0 cat.jpg --steps-shown 0,1,2,5,10,20 --target goldfish -o steps.svg
  surgeon figure exported/lite0 cat.jpg --temperatures 0.03,0.1,0.3,1,3 -o temperatures.png
  surgeon figure exported/lite0-layer cat.jpg --strongest 12 -o atlas.png\n"""


class Listed(click.ParamType[tuple[float, ...]]):
    """Numbers between commas, ascending, each once: whole ones from 0, or any above 0."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.name = "N,N,..." if whole else "T,T,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse `value`, unless it is parsed already."""
        if isinstance(value, tuple):
            return value
        try:
            found = {int(part) if self.whole else options.number(above=0)(part) for part in value.split(",")}
        except (ValueError, click.BadParameter):
            found = {-1}
        if min(found) < 0 or max(found) == 0:
            self.fail(f"{value!r} is no list such as {'0,1,5,20' if self.whole else '0.1,0.3,1'}.", param, ctx)
        return tuple(sorted(found))


@click.command("figure", epilog=EXAMPLES)
@options.bundle
@options.photos
@options.targets
@options.units
@click.option("--steps-shown", type=Listed(True), help="Instead show each photo after so many steps towards its class.")
@click.option("--temperatures", type=Listed(False), help="Instead show each photo's class at so many temperatures.")
@click.option(
    "--strongest",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Instead show the N strongest units of each layer that a bundle is cut at (--at), or classes: their pullbacks "
    "and ascents.",
)
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
@click.option(
    "--columns",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Most classes or units in a row.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Most photos on a page; what is more goes to FILE-2, FILE-3 and so on.",
)
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
@options.provider_options
@options.threads
@options.silent
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("exported/figure.png"),
    show_default=True,
    help="A picture (.png, .jpg), or an SVG with the pictures inside.",
)
@options.as_json
def command(
    bundle: Path,
    photos: tuple[Path, ...],
    targets: tuple[str, ...],
    units: tuple[str, ...],
    steps_shown: tuple[int, ...] | None,
    temperatures: tuple[float, ...] | None,
    strongest: int | None,
    size: options.Size | None,
    against: Path | None,
    columns: int,
    rows: int,
    seed: int,
    clip: float,
    side: int,
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    output: Path,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Draw what BUNDLE's pullbacks add to each PHOTO for each class, and beneath it what ordinary gradients add.

    One row per photo: the photo, then a cell per class, each the difference after the steps, scaled to its own range.
    The classes are the photos' own (what the network sees in them; framed on the diagonal), or those of --target, and
    last one at random. With more photos than --columns, the first column holds each photo's own class. Of a bundle that
    was exported with --at, the columns are those of --unit.

    --steps-shown, --temperatures and --strongest draw other figures in its place. The first two climb to what the
    network sees in the photo, or --target, or --unit: one for all photos, or one for each. Ctrl-C keeps the photos that
    are done.
    """
    from surgeon.analysis.figures import cells, grids, layouts
    from surgeon.cli import screen
    from surgeon.runtime.session import load

    _refuse_mixtures(
        {"--steps-shown": steps_shown, "--temperatures": temperatures, "--strongest": strongest},
        {
            "--target": targets,
            "--unit": units,
            "--against": against,
            "--steps": settings["steps"],
            "--temperature": settings["temperature"],
        },
    )
    grids.require_format(output)  # before the work, not after it
    pages = [range(at, min(at + rows, len(photos))) for at in range(0, len(photos), rows)]
    files = [output if at == 0 else output.with_stem(f"{output.stem}-{at + 1}") for at in range(len(pages))]
    spare_photos(photos, files)
    with screen.waiting("open the bundle", quiet):
        session = load(bundle, device, threads, provider_options)
        plain = load(against, device, threads, provider_options) if against else None
    if session.manifest.recipe.objective == "energy":
        raise SurgeonError(f"the objective of {bundle} is energy, which has no target classes", "See `surgeon run`")
    if session.extra_inputs:
        raise SurgeonError(f"{bundle} takes {session.extra_inputs[0].name} beside the photo", "See `surgeon run`")
    images = [read_photo(session, photo, size) for photo in photos]
    with screen.progress(quiet) as progress:
        task = progress.add_task("looking", total=len(photos))

        def tick() -> None:
            progress.advance(task)

        def each(look: Callable[[numpy.ndarray], Any]) -> list[Any]:
            found = []
            for image in images:
                found.append(look(image))
                tick()
            return found

        if strongest is not None:
            found = each(lambda image: cells.strongest(session, image, strongest))
            figure = layouts.of_units(session, photos, images, found, columns, settings, clip)
        elif steps_shown or temperatures:
            given = choose_targets(session, photos, targets, units)
            aims = [aim for aim in given if aim is not None] or each(lambda image: predicted(session, image))
            if steps_shown:
                figure = layouts.of_steps(session, images, aims, steps_shown, settings)
            else:
                figure = layouts.of_temperatures(session, images, aims, temperatures or (), settings, clip)
        else:
            shared = read_targets(session, targets, units)
            layouts.ordinary(session, plain)  # raises what is wrong before photos are looked at
            own = each(lambda image: _seen(session, image))
            extra = _random_class(session, [*own, *shared], seed) if session.has_classes else None
            sets = layouts.layout(own, shared, columns, extra)
            figure = layouts.of_classes(session, plain, images, own, sets, extra, settings, clip)
        grids.require_room(figure.columns, figure.rows * min(rows, len(photos)), side)
        progress.update(task, description="climbing", completed=0, total=len(photos) * figure.ticks)
        titles: dict[str, None] = {}
        written: list[Path] = []
        done = 0
        for page, file in zip(pages, files, strict=True):
            drawn, interrupted = collect_until_interrupt((figure.draw(place, tick) for place in page), before=done)
            if drawn:
                panels = layouts.joined(drawn)
                grids.save(file, panels, session.manifest.model.name, figure.footer, side)
                titles |= dict.fromkeys(panel.title for panel in panels)
                written.append(file)
                done += len(drawn)
            if interrupted:
                break
    for climber in (session, plain) if plain else (session,):
        screen.warn_off_device(screen.console(error=True), climber.off_device, climber.fallback)
    if as_json:
        described = list(zip(photos, images, figure.facts, strict=True))[:done]
        shown = [{"photo": str(photo), "size": list(image.shape[1:]), **facts} for photo, image, facts in described]
        screen.print_json(
            {"figure": str(output), "pages": [str(file) for file in written], "panels": list(titles), "rows": shown}
        )
    elif not quiet:
        for file in written:
            click.echo(f"figure: {file}")
    if interrupted:
        where = " and ".join(map(str, written))
        raise Interrupted(f"interrupted after {done} of {len(photos)} photos, which are in {where}")


def _refuse_mixtures(kinds: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise UsageError for two kinds of figures, or for an option that the kind has no use for."""
    chosen = [name for name, value in kinds.items() if value is not None]
    if len(chosen) > 1:
        raise click.UsageError(f"{chosen[0]} and {chosen[1]} are two figures: give one of them.")
    useless = {
        "--steps-shown": ("--steps", "--against"),
        "--temperatures": ("--temperature", "--against"),
        "--strongest": ("--target", "--unit", "--against"),
    }
    for name in useless[chosen[0]] if chosen else ():
        if given[name]:
            raise click.UsageError(f"{name} has no meaning beside {chosen[0]}: leave it out.")


def _seen(session: Session, image: numpy.ndarray) -> Target | None:
    """The class that the network sees; None of a hidden layer."""
    return predicted(session, image) if session.has_classes else None


def _random_class(session: Session, targets: Sequence[Target | None], seed: int) -> int | None:
    """A class that no photo has; None where every class is taken."""
    free = sorted({*range(session.classes)}.difference(targets))
    return random.Random(seed).choice(free) if free else None
