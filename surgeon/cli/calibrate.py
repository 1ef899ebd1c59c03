"""`surgeon calibrate`: the temperature chosen from photos, and written into the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgeon.cli import options
from surgeon.cli.photos import read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt

if TYPE_CHECKING:
    import numpy

    from surgeon.analysis.evaluate.calibration import Candidate, Seen, Tried
    from surgeon.runtime.session import Session

EXAMPLES = """\b
Examples:
  surgeon calibrate exported/lite0 *.jpg --strip strip.png
  surgeon calibrate exported/lite0 *.jpg --write
  surgeon export efficientnet_lite0 --gate-outputs --temperature-input per-gate -o exported/lite0-gates
  surgeon calibrate exported/lite0-gates *.jpg --per-gate --write"""


@click.command("calibrate", epilog=EXAMPLES)
@options.bundle
@options.photos
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
@click.option("--write", is_flag=True, help="Write the chosen T into the bundle, as its default.")
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
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Choose the temperature T of BUNDLE's gates from PHOTOs, two or more, by running its artifacts.

    Each T has four criteria, means over the photos of numbers from 0 to 1: stability (the cosine between pullbacks at
    the photo and at versions of it, moved by some pixels or a little noisy), targets (1 - the cosine of pullbacks
    towards two classes), photos (1 - the cosine of pullbacks at two photos towards one class) and gain (the rise of the
    objective per unit of L2 moved by an ascent towards the photo's own class, relative to the photo's best). The T with
    the largest product is chosen. surgeon/analysis/evaluate/calibration.py argues for them; --strip shows what ascents
    draw at every T, so that you can overrule them with `surgeon set-temperature`. Ctrl-C keeps what is known of each T
    that is done; none is chosen then, or written.
    """
    from surgeon.analysis.evaluate import calibration
    from surgeon.analysis.figures import grids, temperature_strip
    from surgeon.bundle.default_temperature import set_temperature, with_temperature
    from surgeon.cli import screen
    from surgeon.cli.reports import calibration_report
    from surgeon.runtime.session import load

    if not highest > lowest:
        raise click.UsageError(f"--to {highest:g} is not above --from {lowest:g}.")
    if strip is not None:
        grids.require_format(strip)
        grids.require_room(1 + count, len(photos) * (1 + per_gate), side)
        spare_photos(photos, [strip])
    with screen.waiting("open the bundle", quiet):
        session = load(bundle, device, threads, provider_options)
    with_temperature(session.manifest, session.manifest.defaults.temperature)  # raises where it takes none
    calibration.require(session, len(photos), per_gate)
    images = [read_photo(session, photo, None) for photo in photos]
    values = calibration.grid(lowest, highest, count)
    tried, seen, interrupted = _sweep(session, images, values, per_gate, steps, quiet)
    best = None if interrupted else calibration.choose(tried)
    if strip is not None:
        temperature_strip.save(strip, session, images, tried, best, seen, side, steps)
    screen.warn_off_device(session)
    written = best.candidate.temperature if best is not None and write else None
    if written is not None:
        set_temperature(session.bundle, written)
    if as_json:
        place = None if strip is None else str(strip)
        facts = calibration_report.facts(tried, best)
        screen.print_json({"bundle": str(bundle), "strip": place, **facts, "written": written})
    else:
        calibration_report.show(screen.console(), bundle, tried, best, len(photos), strip, write)
    if interrupted:
        of = count * (1 + per_gate)
        raise Interrupted(f"interrupted after {len(tried)} of {of} temperatures; none is chosen or written")
    if best is None:
        raise SurgeonError(
            "no temperature passes: at each of them a criterion is zero",
            f"Give other photos, or choose one: surgeon set-temperature {bundle} T",
        )


def _sweep(
    session: Session,
    images: Sequence[numpy.ndarray],
    values: Sequence[float],
    per_gate: bool,
    steps: int | None,
    quiet: bool,
) -> tuple[list[Tried], list[list[Seen]], bool]:
    """Every candidate, global ones first, at every photo; whether Ctrl-C cut it short."""
    from surgeon.analysis.evaluate.calibration import Candidate, best_two, judged, look, scales
    from surgeon.cli import screen

    with screen.progress(quiet) as progress:
        total = len(images) * (len(values) * (1 + per_gate) + per_gate)
        task = progress.add_task("", total=total)
        candidates: list[Candidate] = [Candidate(value, value) for value in values]
        if per_gate:
            progress.update(task, description="scales of the gates")
            deviations = scales(session, images, lambda: progress.advance(task))
            candidates += [Candidate(value, tuple(value * scale for scale in deviations)) for value in values]
        progress.update(task, description="looking")
        classes = [best_two(session, image) for image in images]

        def looked() -> Iterator[list[Seen]]:
            for candidate in candidates:
                progress.update(task, description=candidate.name)
                yield look(session, images, classes, candidate, steps, lambda: progress.advance(task))

        seen, interrupted = collect_until_interrupt(looked())
    return judged(candidates[: len(seen)], seen), seen, interrupted
