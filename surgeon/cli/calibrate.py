"""`surgeon calibrate`: the temperature chosen from photos, and written into the bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.cli.photos import read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt
from surgeon.runtime.photos import image_of

if TYPE_CHECKING:
    import numpy
    import PIL.Image
    from rich.table import Table

    from surgeon.analysis.evaluate.calibration import Candidate, Seen, Tried
    from surgeon.runtime.session import Session

EXAMPLES = """\b
Examples:
  surgeon calibrate exported/lite0 *.jpg --strip strip.png
  surgeon calibrate exported/lite0 *.jpg --write
  surgeon calibrate exported/lite0 --set 0.5
  surgeon export efficientnet_lite0 --gate-outputs --temperature-input per-gate -o exported/lite0-gates
  surgeon calibrate exported/lite0-gates *.jpg --per-gate --write"""

CLIP = 0.5
"""Percentage of a cell's values that is cut at either end, as in the README's figure."""


@click.command("calibrate", epilog=EXAMPLES)
@options.bundle
@click.argument("photos", nargs=-1, metavar="[PHOTO...]", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "lowest",
    type=options.number(above=0),
    default=0.03,
    show_default=True,
    metavar="T",
    help="Lowest T tried.",
)
@click.option(
    "--to", "highest", type=options.number(above=0), default=10.0, show_default=True, metavar="T", help="Highest."
)
@click.option("--count", type=click.IntRange(min=2), default=11, show_default=True, help="How many are tried.")
@click.option(
    "--per-gate", is_flag=True,
    help="Try T = t × the standard deviation of what enters each gate, too, of a bundle that was exported with "
    "--gate-outputs and --temperature-input per-gate.",
)  # fmt: skip
@options.steps
@click.option(
    "--strip", type=click.Path(path_type=Path), metavar="FILE",
    help="Draw what ascents add: a row for each photo, a column for each T.",
)  # fmt: skip
@click.option("--side", type=click.IntRange(32, 1024), default=112, show_default=True, help="Pixels of a cell's side.")
@click.option("--write", is_flag=True, help="Write the T that is chosen into the bundle, as its default.")
@click.option("--set", "given", type=options.number(above=0), metavar="T", help="Write this T, whatever is chosen.")
@options.device
@options.provider_options
@options.threads
@options.quiet
@options.as_json
def command(
    bundle: Path,
    photos: tuple[Path, ...],
    lowest: float,
    highest: float,
    count: int,
    per_gate: bool,
    steps: int | None,
    strip: Path | None,
    side: int,
    write: bool,
    given: float | None,
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Choose the temperature T of BUNDLE's gates from PHOTOs, two or more, by running its artifacts.

    Of each T, four criteria, means over the photos of numbers from 0 to 1: stability (the cosine between pullbacks at
    the photo and at versions that are moved by some pixels or a little noisy), targets (1 - the cosine of pullbacks
    towards two classes), photos (1 - the cosine of pullbacks at two photos towards one class) and gain (the rise of the
    objective per unit of L2 moved by an ascent towards the photo's own class, relative to the photo's best). The T with
    the largest product is chosen. The argument for them is in surgeon/analysis/evaluate/calibration.py; --strip shows
    what ascents draw at every T, so that you can overrule them with --set. Ctrl-C keeps what is known of each T that is
    done; none is chosen then, or written.
    """
    from surgeon.analysis.evaluate.calibration import choose
    from surgeon.bundle.default_temperature import set_temperature, with_temperature
    from surgeon.cli import screen
    from surgeon.runtime.session import load

    with screen.waiting("open the bundle", quiet):
        session = load(bundle, device, threads, provider_options)
    with_temperature(session.manifest, given or session.manifest.defaults.temperature)  # or refuses
    if not photos and given is None:
        raise click.UsageError("Give two photos or more, or --set T.")
    if not photos and (strip is not None or per_gate):
        raise click.UsageError("--strip and --per-gate need photos.")
    report: dict[str, Any] = {}
    temperature: Any = given
    console = screen.console()
    if photos:
        if strip is not None:
            from surgeon.analysis.figures import grids

            grids.require_format(strip)
            grids.require_room(1 + count, len(photos) * (1 + per_gate), side)
            spare_photos(photos, [strip])
        if not highest > lowest:
            raise click.UsageError(f"--to {highest:g} is not above --from {lowest:g}.")
        _require(session, photos, per_gate)
        images = [read_photo(session, photo, None) for photo in photos]
        tried, seen, interrupted = _sweep(session, images, (lowest, highest, count), per_gate, steps, quiet)
        best = None if interrupted else choose(tried)
        if strip is not None:
            _draw(session, strip, images, tried, best, seen, side, steps)
        screen.warn_off_device(screen.console(error=True), session.off_device, session.fallback)
        report = _facts(tried, best)
        if not as_json:
            console.print(table(tried, best))
            if best is not None:
                console.print(_reason(tried, best, len(photos)), soft_wrap=True)
            if strip is not None:
                console.print(f"strip: {strip}", style="dim", soft_wrap=True, markup=False)
        undecided: SurgeonError | None = None
        if interrupted:
            of = count * (1 + per_gate)
            undecided = Interrupted(f"interrupted after {len(tried)} of {of} temperatures; none is chosen or written")
        elif best is None and given is None:
            undecided = SurgeonError(
                "no temperature passes: at each of them a criterion is zero",
                "Give other photos, or set it with --set T",
            )
        if undecided is not None:
            if as_json:
                screen.print_json({"bundle": str(bundle), "strip": _text(strip), **report, "written": None})
            raise undecided
        if best is not None and given is None:
            temperature = best.candidate.temperature
    writing = write or given is not None
    if writing:
        set_temperature(session.bundle, temperature)
    if as_json:
        written = temperature if writing else None
        screen.print_json({"bundle": str(bundle), "strip": _text(strip), **report, "written": written})
    elif writing:
        told = "a temperature for each gate" if isinstance(temperature, tuple) else f"T = {temperature:g}"
        console.print(f"{bundle}: {told} written as the default", soft_wrap=True, markup=False)
    else:
        wanted = "PHOTO... --per-gate --write" if isinstance(temperature, tuple) else f"--set {temperature:g}"
        console.print(f"Next: surgeon calibrate {bundle} {wanted}", style="dim", soft_wrap=True, markup=False)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _require(session: Session, photos: Sequence[Path], per_gate: bool) -> None:
    """Raise SurgeonError where the criteria cannot be measured."""
    if len(photos) < 2:
        raise SurgeonError("one photo was given, and pullbacks at different photos are compared", "Give two or more")
    if session.manifest.recipe.objective == "energy":
        raise SurgeonError(
            f"the objective of {session.bundle.path} is energy, which has no target classes", "Use --set T"
        )
    if session.extra_inputs:
        raise SurgeonError(
            f"{session.bundle.path} takes {session.extra_inputs[0].name} beside the photo", "Use --set T"
        )
    if not session.has_classes:
        raise SurgeonError(f"the output of {session.bundle.path} is no row of classes to pull back from", "Use --set T")
    if per_gate:
        session.require_gates()
        if session.manifest.recipe.temperature_input != "per-gate":
            raise SurgeonError(
                f"{session.bundle.path} takes one temperature for all gates",
                "Export it with --temperature-input per-gate",
            )


def _sweep(
    session: Session,
    images: Sequence[numpy.ndarray],
    range: tuple[float, float, int],
    per_gate: bool,
    steps: int | None,
    quiet: bool,
) -> tuple[list[Tried], list[list[Seen]], bool]:
    """Every candidate, global ones first, at every photo; whether Ctrl-C cut it short."""
    from surgeon.analysis.evaluate.calibration import Candidate, best_two, grid, judged, look, scales
    from surgeon.cli import screen

    values = grid(*range)
    with screen.progress(quiet) as progress:
        total = len(images) * (len(values) * (1 + per_gate) + per_gate)
        task = progress.add_task("", total=total)
        candidates: list[Candidate] = [Candidate(value, value) for value in values]
        if per_gate:
            progress.update(task, description="scales of the gates")
            own = scales(session, images, lambda: progress.advance(task))
            candidates += [Candidate(value, tuple(value * scale for scale in own)) for value in values]
        progress.update(task, description="looking")
        classes = [best_two(session, image) for image in images]

        def looked() -> Iterator[list[Seen]]:
            for candidate in candidates:
                progress.update(task, description=_name(candidate))
                yield look(session, images, classes, candidate, steps, lambda: progress.advance(task))

        seen, interrupted = collect_until_interrupt(looked())
    return judged(candidates[: len(seen)], seen), seen, interrupted


def _name(candidate: Candidate) -> str:
    return f"t {candidate.factor:g}" if candidate.per_gate else f"T {candidate.factor:g}"


def _reason(tried: Sequence[Tried], best: Tried, photos: int) -> str:
    """Why `best` is chosen, and what comes near."""
    from surgeon.analysis.evaluate.calibration import CLOSE

    close = [one for one in tried if one.product >= CLOSE * best.product and one is not best]
    named = ", ".join(_name(one.candidate) for one in close)
    tied = f"; within {100 - 100 * CLOSE:.0f} % of it: {named}" if close else ""
    what = f"whose product of the four, means over {photos} photos, is the largest"
    return f"chosen: {_name(best.candidate)}, {what}{tied}"


def table(tried: Sequence[Tried], best: Tried | None) -> Table:
    """One line for each temperature that was tried; `best` is the one chosen, if any is."""
    from rich import box
    from rich.table import Table

    report = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    report.add_column("temperature")
    for heading in ("stability", "targets", "photos", "gain", "product"):
        report.add_column(heading, justify="right")
    report.add_column("")
    for one in tried:
        numbers = (one.stability, one.targets, one.photos, one.gain, one.product)
        name = _name(one.candidate) + (" × std of the gate" if one.candidate.per_gate else "")
        chosen = one is best
        report.add_row(
            name, *(f"{number:.3f}" for number in numbers), "chosen" if chosen else "", style="bold" if chosen else None
        )
    return report


def _facts(tried: Sequence[Tried], best: Tried | None) -> dict[str, Any]:
    rows = [{**dataclasses.asdict(one), "product": one.product, "chosen": one is best} for one in tried]
    chosen = best and {"factor": best.candidate.factor, "temperature": best.candidate.temperature}
    return {"chosen": chosen, "tried": rows}


def _draw(
    session: Session,
    path: Path,
    images: Sequence[numpy.ndarray],
    tried: Sequence[Tried],
    best: Tried | None,
    seen: Sequence[Sequence[Seen]],
    side: int,
    steps: int | None,
) -> None:
    """What ascents added at each temperature: a panel for global ones, and one for those of each gate."""
    from surgeon.analysis.figures import grids
    from surgeon.analysis.figures.grids import Cell, Panel
    from surgeon.runtime.pictures import difference, to_picture

    layout, panels = image_of(session), []

    def cell(image: numpy.ndarray, place: int, row: int) -> Cell:
        picture: PIL.Image.Image = difference(image, seen[place][row].perturbed, CLIP)
        return Cell(picture, framed=tried[place] is best)

    for per_gate, title in (
        (False, "One T for all gates"),
        (True, "T = t times the standard deviation of what enters the gate"),
    ):
        places = [place for place, one in enumerate(tried) if one.candidate.per_gate == per_gate]
        rows = [
            [Cell(to_picture(image, layout)), *(cell(image, place, row) for place in places)]
            for row, image in enumerate(images)
        ]
        if places:
            panels.append(Panel(title, ["photo", *(_name(tried[place].candidate) for place in places)], rows))
    count = steps or session.manifest.defaults.steps
    footer = (
        f"Each cell: what {count} steps towards the class that the network sees add to the photo, scaled to its own "
        f"range less {CLIP:g} % at either end."
    ) + (" Framed: the temperature that the criteria choose." if best else "")
    grids.save(path, panels, session.manifest.model.name, footer, side)
