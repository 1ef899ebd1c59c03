"""`surgeon bench`: times of a bundle's artifacts, beside those of baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.analysis.bench import BASELINES
from surgeon.cli import options
from surgeon.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from surgeon.analysis.bench.benchmark import Benchmark, Round
    from surgeon.analysis.bench.profiling import Profile

NAMES = {"ascent": "ascent, per step of {}", "steps": "ascent_step, its state on the GPU"}
MOST_SHARES = 12  # of a profile, on the screen

EXAMPLES = """\b
Examples:
  surgeon bench exported/lite0
  surgeon bench exported/lite0 --against forward,eager --threads 1 --batch 1,8
  surgeon bench exported/lite0 --against none --json
  surgeon bench exported/lite0 --against none --profile"""


@click.command("bench", epilog=EXAMPLES)
@options.bundle
@click.option(
    "--against",
    type=options.CommaList(click.Choice(BASELINES), "NAMES", unique=True, words={"none": ()}),
    help="forward (the plain ONNX export), eager (the same gates by autograd), compile (torch.compile of that), or "
    "none.  [default: forward, where torch is installed]",
)
@click.option(
    "--batch", "batches", type=options.CommaList(click.IntRange(min=1), "N,...", unique=True), default="1",
    show_default=True, help="Batch sizes.",
)  # fmt: skip
@options.steps
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Turns; each candidate is timed once in a turn.",
)
@click.option("--warm-up", type=click.IntRange(min=0), default=2, show_default=True, help="Turns before, not counted.")
@click.option("--profile", "profiled", is_flag=True, help="Show where the pullback's time goes: operators and layers.")
@click.option("--source", metavar="SOURCE", help="The network, if not what the manifest says.")
@click.option("--weights", metavar="FILE|NAME", help="Its weights, if not where the manifest says.")
@options.device
@options.provider_options
@options.threads
@options.quiet
@options.as_json
def command(bundle: Path, against: tuple[str, ...] | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Time the pullback and the ascent (per step) of BUNDLE, in turn with forward passes and with PyTorch.

    A pullback does a forward pass's work twice, so ratios are to two plain forward passes of the same network in the
    same runtime. The values of every baseline are compared with the artifact's before it is timed. An ascent ends with
    one more forward pass, for the score of its result, which counts as half a step. On the CPU the bundle runs as
    surgeon.load runs it, at its default temperature. Ctrl-C keeps the turns that are done.
    """
    from surgeon.analysis.bench.benchmark import benchmark, torch_is_installed
    from surgeon.cli import screen

    if against is None:
        against = ("forward",) if torch_is_installed() else ()
    with screen.progress(quiet) as bar:
        task = bar.add_task("", total=1)

        def progress(doing: str, share: float) -> None:
            bar.update(task, description=doing, completed=share)

        report = benchmark(bundle, against=against, progress=progress, **settings)
    if as_json:
        screen.print_json(report.to_json())
    else:
        console = screen.console()
        for round in report.rounds:
            _print_round(console, report, round)
            if round.profile is not None:
                _print_profile(console, round.profile)
        if "forward" not in against:
            console.print("ratios to 2 x forward need --against forward, and torch", style="dim")
        screen.warn_off_device(report, to=console)
        _print_machine(console, report)
    if report.interrupted:
        done = ", ".join(f"batch {round.batch}: {len(round.timings[0].seconds)}" for round in report.rounds)
        raise Interrupted(f"interrupted; of {report.repeats} turns each these are done: {done}")


def _print_round(console: Console, report: Benchmark, round: Round) -> None:
    from rich.text import Text

    from surgeon.cli import screen
    from surgeon.cli.reports.tables import Column, table_of

    def spread(quartiles: tuple[float, float], text: Callable[[float], str]) -> str:
        return " – ".join(map(text, quartiles))

    columns = [
        Column("", lambda timing: NAMES.get(timing.name, timing.name).format(report.steps)),
        Column("median", lambda timing: f"{_milliseconds(timing.median)} ms", right=True),
        Column("quartiles", lambda timing: spread(timing.quartiles, _milliseconds), right=True),
    ]
    if any(timing.ratios for timing in round.timings):
        columns += [
            Column("ratio to 2 x forward", lambda timing: f"{timing.ratio:.2f}", right=True),
            Column("quartiles", lambda timing: spread(timing.ratio_quartiles, "{:.2f}".format), right=True),
        ]
    if any(timing.peak for timing in round.timings):
        peak = Column("peak memory", lambda row: "" if row.peak is None else screen.size_text(row.peak), right=True)
        columns.append(peak)
    console.print(table_of(f"{report.model}, batch {round.batch}, {report.machine.device}", columns, round.timings))
    for name, reason in round.skipped.items():
        console.print(Text(f"{name} was left out: {reason}", style="yellow"), soft_wrap=True)


def _print_profile(console: Console, profile: Profile) -> None:
    from surgeon.cli.reports.tables import Column, table_of

    divisions = {"operator": profile.operators, "layer": profile.layers}
    if len(profile.providers) > 1:
        divisions["provider"] = profile.providers
    for kind, shares in divisions.items():
        columns = (
            Column(kind, lambda share: share[0]),
            Column("nodes", lambda share: share[1], right=True),
            Column("time", lambda share: f"{_milliseconds(share[2])} ms", right=True),
            Column("share", lambda share: f"{share[2] / profile.seconds:.0%}", right=True),
        )
        rows = [(share.name, share.nodes, share.seconds) for share in shares[:MOST_SHARES]]
        if rest := shares[MOST_SHARES:]:
            rest_name = f"{len(rest)} more"
            rows.append((rest_name, sum(share.nodes for share in rest), sum(share.seconds for share in rest)))
        console.print(table_of(f"pullback, batch {profile.batch}, by {kind}", columns, rows))


def _print_machine(console: Console, report: Benchmark) -> None:
    machine = report.machine
    load = "" if machine.load is None else f"; load before {machine.load:g}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    set_options = ", ".join(f"{key}={value}" for key, value in report.provider_options.items())
    lines = (
        *([f"ONNX Runtime's provider has {set_options}"] if set_options else []),
        f"{report.repeats} turns after {report.warm_up} to warm up; gates {report.gate}, pools {report.pool}",
        f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, {machine.system}{load}",
        versions,
    )
    for line in lines:
        console.print(line, style="dim", markup=False, soft_wrap=True)
    if machine.busy:
        warning = "the machine was busy: other processes wanted its cores: times mean little, ratios less than usual"
        console.print(warning, style="yellow", soft_wrap=True)


def _milliseconds(seconds: float) -> str:
    """`seconds` in milliseconds, to three digits."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
