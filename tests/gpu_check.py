"""What `make gpu-check` runs, on a machine with a GPU: convert, verify there, time there, and print one table.

Every network is exported for a GPU with random weights (times do not depend on them), in fp32 and in fp16, and run in
VARIANTS of ONNX Runtime's options. Of each variant, the artifacts are compared with autograd, and an ascent whose state
stays on the GPU with the loop; then what `surgeon bench` does times them beside PyTorch on the same GPU. A variant that
fails has its error for a row, and the exit code says so at the end. Nothing falls back: without CUDA for ONNX Runtime
or for PyTorch, it ends with exit code 5 at once.

    python -m tests.gpu_check                         # four networks, batches 1 and 32
    python -m tests.gpu_check resnet50 --batch 1,8
    python -m tests.gpu_check resnet18 --device cpu   # to see that it works
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import numpy
from rich.console import Console
from rich.table import Table

from surgeon.analysis.bench.benchmark import Benchmark, Round, benchmark, feeds
from surgeon.bundle.manifest import Recipe
from surgeon.errors import ProviderError, SurgeonError
from surgeon.exporting import export
from surgeon.network.sources import Source, resolve
from surgeon.runtime.session import load
from surgeon.verify.verify import HARD_ASCENT_TOLERANCE, verify

NETWORKS = ("resnet50", "vgg11_bn", "densenet121", "mobilenet_v2")


class Variant(NamedTuple):
    """One way to run a network."""

    name: str
    precision: str
    options: dict[str, str]  # of ONNX Runtime's provider, on top of TF32 off


VARIANTS = (
    Variant("fp32", "fp32", {}),
    Variant("fp32, TF32", "fp32", {"use_tf32": "1"}),
    Variant("fp32, NHWC", "fp32", {"prefer_nhwc": "1"}),
    Variant("fp32, CUDA graphs", "fp32", {"enable_cuda_graph": "1"}),
    Variant("fp16", "fp16", {}),
    Variant("fp16, NHWC", "fp16", {"prefer_nhwc": "1"}),
)


class Row(NamedTuple):
    """One network in one variant at one batch size: milliseconds, and what was seen beside them."""

    network: str
    variant: str
    batch: int
    error: float  # the largest of the verification, on the device
    milliseconds: dict[str, float]
    off: int  # nodes that left the GPU


class Failure(NamedTuple):
    """What a variant has for a row where it fails."""

    network: str
    variant: str
    told: str


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.argument("networks", nargs=-1)
@click.option("--batch", default="1,32", show_default=True, help="Batch sizes, with commas.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--repeats", default=20, show_default=True)
def main(networks: tuple[str, ...], batch: str, device: str, repeats: int) -> None:
    console, rows, reports = Console(width=160), [], []
    batches = [int(size) for size in batch.split(",")]
    for network in networks or NETWORKS:
        for precision in ("fp32", "fp16"):
            variants = [one for one in VARIANTS if one.precision == precision and (device != "cpu" or not one.options)]
            for found, report in check(network, precision, variants, batches, device, repeats, console):
                rows += found
                reports += [report] if report else []
    console.print(table(rows))
    if reports:
        machine = reports[0].machine
        console.print(f"{machine.device}; {machine.processor}, {machine.threads} threads; {machine.versions}")
    sys.exit(int(any(isinstance(row, Failure) for row in rows)))


def check(network, precision, variants, batches, device, repeats, console):
    """Export `network` for `device`; yield the rows of each of `variants`, and what was measured.

    A missing provider ends the process with its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="surgeon-gpu-check-") as folder:
        path, source = Path(folder) / network, None
        for variant in variants:
            console.print(f"{network}, {variant.name}: exporting, verifying, timing", style="dim")
            try:
                if source is None:
                    source = resolve(network, weights="random")
                    layout = "blocked" if device == "cpu" else "plain"
                    recipe = Recipe(precision=precision, layout=layout)
                    export(source, path, recipe, formats=("onnx",), check=False)
                yield measured(network, path, source, variant, batches, device, repeats)
            except ProviderError as error:
                console.print(f"error: {error}")
                sys.exit(error.exit_code)
            except Exception as error:  # whatever it is, the next variant may do
                told = (str(error).splitlines() or [type(error).__name__])[0]
                console.print(f"{network}, {variant.name}: {told}", style="yellow", markup=False)
                yield [Failure(network, variant.name, told)], None


def measured(
    network: str, path: Path, source: Source, variant: Variant, batches: list[int], device: str, repeats: int
) -> tuple[list[Row], Benchmark]:
    """Compare the bundle's artifacts with autograd on `device`, and time them.

    Raises SurgeonError where any of it fails: a comparison too.
    """
    lines = verify(path, source.module, device=device, provider_options=variant.options)
    failed = [line for line in lines if not line.passed]
    if failed:
        told = "; ".join(f"{line.artifact} {line.quantity}, {line.condition}: {line.error:.1e}" for line in failed)
        raise SurgeonError(f"it is not what autograd computes: {told}")
    repeater(path, variant, device, batches[0])
    report = benchmark(
        path,
        against=("forward", "eager"),
        batches=batches,
        device=device,
        provider_options=variant.options,
        repeats=repeats,
        weights="random",
    )
    off = sum(len(nodes) for nodes in report.off_device.values())
    worst = max(line.error for line in lines)
    return [_row(network, variant.name, worst, off, round) for round in report.rounds], report


def repeater(path: Path, variant: Variant, device: str, batch: int) -> None:
    """Walk by single steps, again with another temperature, and once more; raise unless the loop ends there as well.

    A state that is left behind or a scalar that a CUDA graph held on to would lead elsewhere altogether.
    """
    stepping = load(path, device, provider_options=variant.options)
    looping = load(path, device, provider_options=stepping.device.uncaptured.given)
    given = feeds(stepping.bundle, batch)
    for temperature in (None, 1.5, 0.7):
        settings = {"steps": 5, "temperature": temperature}
        *_, last = stepping.steps(given["input"], given["cotangent"], **settings)
        expected = looping.ascent(given["input"], given["cotangent"], **settings).perturbed - given["input"]
        off = numpy.linalg.norm(last.perturbed - given["input"] - expected) / numpy.linalg.norm(expected)
        if not off <= HARD_ASCENT_TOLERANCE:
            raise SurgeonError(f"five steps at T {temperature} lead elsewhere than the loop does: {off:.1e}")


def _row(network: str, variant: str, error: float, off: int, round: Round) -> Row:
    times = {timing.name: 1000 * timing.median for timing in round.timings}
    return Row(network, variant, round.batch, error, times, off)


def table(rows: list[Row | Failure]) -> Table:
    """The rows, with what the artifacts save beside PyTorch: above 1, they are faster."""
    found = Table(title="milliseconds; ratios of medians", title_justify="left")
    columns = ("network", "variant", "batch", "error", "forward", "pullback", "to 2 x forward", "per step, loop")
    for column in (*columns, "by steps", "eager", "eager / pullback", "eager / step", "nodes off the GPU"):
        found.add_column(column, justify="left" if column in ("network", "variant") else "right")
    for row in rows:
        if isinstance(row, Failure):
            found.add_row(row.network, row.variant, "", "failed")
            continue
        times = row.milliseconds
        forward, pullback, eager = (times[name] for name in ("forward", "pullback", "eager"))
        steps = [times.get("ascent"), times.get("steps")]
        shown = (forward, pullback, pullback / (2 * forward), *steps, eager)
        best = min(step for step in steps if step is not None)
        found.add_row(
            row.network,
            row.variant,
            str(row.batch),
            f"{row.error:.1e}",
            *("" if value is None else f"{value:.2f}" for value in shown),
            *(f"{eager / pullback:.2f}", f"{eager / best:.2f}", str(row.off)),
        )
    for row in rows:
        if isinstance(row, Failure):
            found.caption = f"{found.caption or ''}{row.network}, {row.variant}: {row.told}\n"
    found.caption_justify = "left"
    return found


if __name__ == "__main__":
    main()
