"""`surgeon gates`: the gates of a network at photos, and how far they turn the pullback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgeon.cli import extra_input_options, options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt
from surgeon.runtime.targets import cotangents, predicted

if TYPE_CHECKING:
    from surgeon.analysis.evaluate.gate_statistics import PhotoStatistics

EXAMPLES = """\b
Examples:
  surgeon export efficientnet_lite0 --gate-outputs -o exported/lite0
  surgeon gates exported/lite0 cat.jpg dog.jpg
  surgeon gates exported/lite0 cat.jpg --target "tiger cat" --temperature 0.3
  surgeon gates exported/lite0 *.jpg --plot gates.svg --json"""


@click.command("gates", epilog=EXAMPLES)
@options.bundle
@options.photos
@options.targets
@options.units
@options.size
@options.temperature
@extra_input_options.given
@click.option(
    "--near", type=options.number(above=0), default=1.0, show_default=True, metavar="X",
    help="Units with |z/T| below it count as near the threshold.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the numbers, too: .png, .svg or .pdf."
)
@options.device
@options.provider_options
@options.threads
@options.quiet
@options.as_json
def command(
    bundle: Path,
    photos: tuple[Path, ...],
    targets: tuple[str, ...],
    units: tuple[str, ...],
    size: options.Size | None,
    temperature: float | None,
    extra_input: tuple[str, ...],
    near: float,
    plot: Path | None,
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure each gate of BUNDLE's network at PHOTOs, and how far soft gates turn the pullback from hard ones.

    In order of depth, means over the photos: quantiles of z/T, where z is the gate's input, counted from the edge where
    it opens; the share of units near that edge, |z/T| < 1; the share that is open, z > 0; the mean |soft - hard| of the
    gate; and the cosine between the cotangents that arrive at its output under soft gates and under hard ones, for the
    same cotangent at the network's output. Without --target, that is each photo's most probable class.

    BUNDLE must have been exported with --gate-outputs. Ctrl-C keeps the photos that are done.
    """
    from surgeon.analysis.evaluate.gate_statistics import mean, statistics
    from surgeon.analysis.figures import gate_plot, plots
    from surgeon.cli import screen
    from surgeon.cli.reports import gates_report
    from surgeon.runtime.session import load

    if plot is not None:
        plots.require(plot)
        spare_photos(photos, [plot])
    with screen.waiting("open the bundle", quiet):
        session = load(bundle, device, threads, provider_options)
    session.require_gates()
    if session.manifest.recipe.objective == "energy" and not session.has_classes:
        raise SurgeonError(f"the objective of {bundle} is energy, which has no target unit", "See `surgeon run`")
    wanted = choose_targets(session, photos, targets, units)
    extra_inputs = extra_input_options.read(session, extra_input)
    images = [read_photo(session, photo, size) for photo in photos]

    def looked() -> Iterator[tuple[Path, str, PhotoStatistics]]:
        for photo, image, target in zip(photos, images, wanted, strict=True):
            progress.update(task, description=photo.name)
            target = predicted(session, image, extra_inputs) if target is None else target
            values = session.gates(image[None], cotangents(session, [target], image), temperature, extra_inputs)
            yield photo, session.label(target), statistics(session.manifest, values, temperature, near)
            progress.advance(task)

    with screen.progress(quiet) as progress:
        task = progress.add_task("", total=len(photos))
        seen, interrupted = collect_until_interrupt(looked())
    screen.warn_off_device(session)
    total = mean([numbers for _, _, numbers in seen])
    if plot is not None:
        over = photos[0].name if len(seen) == 1 else f"{len(seen)} photos"
        gate_plot.draw(plot, total, f"{session.manifest.model.name}, {over}", near)
    if as_json:
        rows = [{"photo": str(photo), "target": name, **gates_report.facts(numbers)} for photo, name, numbers in seen]
        head = {"bundle": str(bundle), "near": near, "plot": str(plot) if plot else None}
        screen.print_json({**head, **gates_report.facts(total), "photos": rows})
    else:
        console = screen.console()
        definition = gates_report.definition(near, [name for _, name, _ in seen])
        console.print(gates_report.table(total))
        console.print(definition, style="dim", soft_wrap=True, markup=False)
        if plot is not None:
            console.print(f"plot: {plot}", style="dim", soft_wrap=True, markup=False)
    if interrupted:
        raise Interrupted(f"interrupted after {len(seen)} of {len(photos)} photos; the figures are of those")
