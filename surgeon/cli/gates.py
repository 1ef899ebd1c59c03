"""`surgeon gates`: what the gates of a network do at photos, and how far they turn the pullback."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import extra_input_options, options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt
from surgeon.runtime.targets import cotangents, predicted

if TYPE_CHECKING:
    from surgeon.analysis.evaluate.gate_statistics import PhotoStatistics
    from surgeon.cli.reports.tables import Fitted

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
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, too: .png, .svg or .pdf.")
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
    """Say what each gate of BUNDLE's network does at PHOTOs, and how far soft gates turn the pullback from hard ones.

    In order of depth, means over the photos: quantiles of z/T, where z is what enters the gate, counted from the edge
    where it opens; the share of units near it, |z/T| < 1; the share that is open, z > 0; the mean |soft - hard| of the
    gate; and the cosine between the cotangents that arrive at its output under soft gates and under hard ones, for the
    same cotangent at the network's output. Without --target, that is each photo's most probable class.

    BUNDLE must have been exported with --gate-outputs. Ctrl-C keeps the photos that are done.
    """
    from surgeon.analysis.evaluate.gate_statistics import mean, statistics
    from surgeon.analysis.figures import gate_plot, plots
    from surgeon.cli import screen
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
    screen.warn_off_device(screen.console(error=True), session.off_device, session.fallback)
    total = mean([found for _, _, found in seen])
    if plot is not None:
        over = photos[0].name if len(seen) == 1 else f"{len(seen)} photos"
        gate_plot.draw(plot, total, f"{session.manifest.model.name}, {over}", near)
    if as_json:
        each = [{"photo": str(photo), "target": target, **facts(one)} for photo, target, one in seen]
        screen.print_json(
            {"bundle": str(bundle), "near": near, "plot": str(plot) if plot else None, **facts(total), "photos": each}
        )
    else:
        console = screen.console()
        console.print(table(total))
        console.print(_definition(near, [target for _, target, _ in seen]), style="dim", soft_wrap=True, markup=False)
        if plot is not None:
            console.print(f"plot: {plot}", style="dim", soft_wrap=True, markup=False)
    if interrupted:
        raise Interrupted(f"interrupted after {len(seen)} of {len(photos)} photos; the figures are of those")


def table(found: PhotoStatistics) -> Fitted:
    """One line for the input, then one for each gate and pool, from the input to the output."""
    from surgeon.analysis.evaluate.gate_statistics import QUANTILES
    from surgeon.cli.reports import tables

    heads = ["T", *(f"{100 * share:g} %" for share in QUANTILES), "near", "open", "|soft-hard|", "cosine"]
    heads[1] = f"z/T {heads[1]}"
    rows = [["(input)", *[""] * (len(heads) - 1), _number(found.cosine)]]
    modules = [gate.module for gate in found.gates]
    for gate in found.gates:
        cells = [f"{gate.temperature:.3g}", *[""] * (len(heads) - 2)]
        if gate.quantiles is not None:
            shares = [f"{100 * share:.1f} %" for share in (gate.near, gate.open) if share is not None]
            cells = [cells[0], *map(_quantile, gate.quantiles), *shares, _number(gate.gap)]
        name = gate.module or gate.node
        if gate.module and modules.count(gate.module) > 1:  # one module, called again
            name += f" ({gate.node})"
        rows.append([name + (" (max pool)" if gate.kind == "pool" else ""), *cells, _number(gate.cosine)])
    spare = ("25 %", "75 %", "|soft-hard|", "T", "95 %", "open")
    return tables.table("", ("gate", *heads), rows, right=heads, spare=spare)


def _quantile(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.1e}"  # a tiny T makes them huge


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _definition(near: float, targets: Sequence[str]) -> str:
    """What the columns mean."""
    named = ", ".join(dict.fromkeys(target.split(",")[0] for target in targets))
    return (
        f"z: what enters the gate, from the edge where it opens. near: |z/T| < {near:g}. open: z > 0. |soft-hard|: "
        "mean over the units, a hard gate being shut at z = 0.\ncosine: of the cotangents that arrive at the gate's "
        f"output under soft and under hard gates (at the input: pullback and gradient), pulled back from: {named}.\n"
        f"Means over {len(targets)} photo{'s' if len(targets) > 1 else ''}."
    )


def facts(found: PhotoStatistics) -> dict[str, Any]:
    """As JSON values; an angle that there is not is null."""
    from surgeon.analysis.evaluate.gate_statistics import QUANTILES

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    gates = []
    for gate in found.gates:
        plain = {name: known(value) for name, value in dataclasses.asdict(gate).items()}
        if gate.quantiles is not None:
            plain["quantiles"] = {f"{share:g}": q for share, q in zip(QUANTILES, gate.quantiles, strict=True)}
        gates.append(plain)
    return {"cosine": known(found.cosine), "gates": gates}
