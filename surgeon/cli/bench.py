"""`surgeon bench`: how long a bundle's artifacts take, beside what one would use without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from surgeon.analysis.bench.benchmark import Benchmark, Round
    from surgeon.analysis.bench.profiling import Profile

BASELINES = ("forward", "eager", "compile")
NAMES = {"ascent": "ascent, per step of {}", "steps": "ascent_step, its state on the GPU"}
MOST_SHARES = 12  # of a profile, on the screen

EXAMPLES = """\b
Examples:
  surgeon bench exported/lite0
  surgeon bench exported/lite0 --against forward,eager --threads 1 --batch 1,8
  surgeon bench exported/lite0 --against none --json
  surgeon bench exported/lite0 --against none --profile"""


def _listed(choices: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """An option's type: some of `choices` with commas between them, or none."""

    def convert(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        if names == ("none",):
            return ()
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise click.BadParameter(f"there is no {unknown[0]!r}; choose from {', '.join(choices)}, or none.")
        return names

    return convert


def _sizes(text: str) -> tuple[int, ...]:
    """An option's type: whole numbers of 1 or more with commas between them."""
    sizes = [part.strip() for part in text.split(",")]
    wrong = [size for size in sizes if not size.isdecimal() or int(size) < 1]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not a whole number of 1 or more.")
    return tuple(dict.fromkeys(int(size) for size in sizes))


@click.command("bench", epilog=EXAMPLES)
@options.bundle
@click.option(
    "--against",
    type=_listed(BASELINES),
    metavar="NAMES",
    help="forward (the plain ONNX export), eager (the same gates by autograd), compile (torch.compile of that), or "
    "none.  [default: forward, where torch is installed]",
)
@click.option("--batch", "batches", type=_sizes, default="1", show_default=True, metavar="N,...", help="Batch sizes.")
@options.steps
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Turns, in each of which each is timed.",
)
@click.option("--warm-up", type=click.IntRange(min=0), default=2, show_default=True, help="Turns before, not counted.")
@click.option("--profile", "profiled", is_flag=True, help="Show where the pullback's time goes: operators and layers.")
@click.option("--source", metavar="MODEL", help="The network, if not what the manifest says.")
@click.option("--weights", metavar="FILE|NAME", help="Its weights, if not where the manifest says.")
@options.device
@options.provider_options
@options.threads
@options.quiet
@options.as_json
def command(bundle: Path, against: tuple[str, ...] | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Time the pullback and the ascent (per step) of BUNDLE, in turn with forward passes and with PyTorch.

    A pullback does a forward pass's work twice, so the ratio is to two plain forward passes of the same network in the
    same runtime. Every opponent's values are compared with the artifact's before it is timed. An ascent ends with one
    forward pass more, for the score of what it reached, which counts as half a step. On the CPU the bundle is run as
    surgeon.load has it, at its default temperature. Ctrl-C keeps the turns that are done.
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
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from surgeon.analysis.bench.benchmark import quartiles
    from surgeon.cli import screen

    title = f"{report.model}, batch {round.batch}, {report.machine.device}"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    compared = any(timing.ratios for timing in round.timings)
    weighed = any(timing.peak for timing in round.timings)
    ratios = ("ratio to 2 x forward", "quartiles") if compared else ()
    for column in ("", "median", "quartiles", *ratios, *(("peak memory",) if weighed else ())):
        table.add_column(column, justify="right" if column else "left")
    for timing in round.timings:
        cells = [NAMES.get(timing.name, timing.name).format(report.steps)]
        cells += [f"{_milliseconds(timing.median)} ms", " – ".join(map(_milliseconds, timing.quartiles))]
        if timing.ratios is not None:
            low, high = quartiles(timing.ratios)
            cells += [f"{timing.ratio:.2f}", f"{low:.2f} – {high:.2f}"]
        table.add_row(*cells, "" if timing.peak is None else screen.size_text(timing.peak))
    console.print(table)
    for name, reason in round.skipped.items():
        console.print(Text(f"{name} was left out: {reason}", style="yellow"), soft_wrap=True)


def _print_profile(console: Console, profile: Profile) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ways = {"operator": profile.operators, "layer": profile.layers}
    if len(profile.providers) > 1:
        ways["provider"] = profile.providers
    for way, shares in ways.items():
        title = Text(f"pullback, batch {profile.batch}, by {way}", style="bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in (way, "nodes", "time", "share"):
            table.add_column(column, justify="left" if column == way else "right")
        shown, rest = shares[:MOST_SHARES], shares[MOST_SHARES:]
        rows = [(share.name, share.nodes, share.seconds) for share in shown]
        if rest:
            extra_inputs = f"{len(rest)} more"
            rows.append((extra_inputs, sum(share.nodes for share in rest), sum(share.seconds for share in rest)))
        for name, nodes, seconds in rows:
            table.add_row(Text(name), str(nodes), f"{_milliseconds(seconds)} ms", f"{seconds / profile.seconds:.0%}")
        console.print(table)


def _print_machine(console: Console, report: Benchmark) -> None:
    machine = report.machine
    load = "" if machine.load is None else f"; load before {machine.load:g}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    given = ", ".join(f"{key}={value}" for key, value in report.provider_options.items())
    lines = (
        *([f"ONNX Runtime's provider has {given}"] if given else []),
        f"{report.repeats} turns after {report.warm_up} to warm up; gates {report.gate}, pools {report.pool}",
        f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, {machine.system}{load}",
        versions,
    )
    for line in lines:
        console.print(line, style="dim", markup=False, soft_wrap=True)
    if machine.busy:
        told = "the machine was busy: other processes wanted its cores: times mean little, ratios less than usual"
        console.print(told, style="yellow", soft_wrap=True)


def _milliseconds(seconds: float) -> str:
    """Three digits that mean something."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
