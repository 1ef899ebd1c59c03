"""What `make gpu-check` runs, on a machine with a GPU: convert, verify there, time there, and print one table.

Every network is exported for a GPU with random weights (times do not depend on them), in fp32 without TF32 and in fp16;
its artifacts are compared with autograd; then what `surgeon bench` does times them beside PyTorch on the same GPU.
Nothing here falls back: without CUDA for ONNX Runtime or for PyTorch, it ends with exit code 5.

    python -m tests.gpu_check                         # four networks, batches 1 and 32; some minutes
    python -m tests.gpu_check resnet50 --batch 1,8
    python -m tests.gpu_check resnet18 --device cpu   # to see that it works
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from surgeon.artifacts.manifest import Recipe
from surgeon.benchmark import Benchmark, Round, benchmark
from surgeon.errors import SurgeonError
from surgeon.exporting import export
from surgeon.sources import resolve
from surgeon.verify import verify

NETWORKS = ("resnet50", "vgg11_bn", "densenet121", "mobilenet_v2")
PRECISIONS = ("fp32", "fp16")


class Row(NamedTuple):
    """One network in one precision at one batch size: milliseconds, and what was seen beside them."""

    network: str
    precision: str
    batch: int
    error: float  # the largest of the verification, on the device
    milliseconds: dict[str, float]
    off: int  # nodes that left the GPU


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.argument("networks", nargs=-1)
@click.option("--batch", default="1,32", show_default=True, help="Batch sizes, with commas.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--repeats", default=20, show_default=True)
def main(networks: tuple[str, ...], batch: str, device: str, repeats: int) -> None:
    console, rows, reports = Console(width=140), [], []
    batches = [int(size) for size in batch.split(",")]
    try:
        for network in networks or NETWORKS:
            for precision in PRECISIONS:
                console.print(f"{network}, {precision}: exporting, verifying, timing", style="dim")
                found, report = check(network, precision, batches, device, repeats)
                rows += found
                reports.append(report)
    except SurgeonError as error:
        console.print(f"error: {error}")
        sys.exit(error.exit_code)
    console.print(table(rows))
    machine = reports[0].machine
    console.print(f"{machine.device}; {machine.processor}, {machine.threads} threads; {machine.versions}")


def check(network: str, precision: str, batches: list[int], device: str, repeats: int) -> tuple[list[Row], Benchmark]:
    """Export `network` for `device`, compare its artifacts with autograd there, and time them.

    Raises SurgeonError where any of it fails: a comparison too.
    """
    source = resolve(network, weights="random")
    recipe = Recipe(precision=precision, layout="plain" if device == "cuda" else "blocked")
    with tempfile.TemporaryDirectory(prefix="surgeon-gpu-check-") as folder:
        path = Path(folder) / network
        export(source, path, recipe, formats=("onnx",), check=False)
        lines = verify(path, source.module, device=device)
        report = benchmark(
            path, against=("forward", "eager"), batches=batches, device=device, repeats=repeats, weights="random"
        )
    failed = [line for line in lines if not line.passed]
    if failed:
        told = "; ".join(f"{line.artifact} {line.quantity}, {line.condition}: {line.error:.1e}" for line in failed)
        raise SurgeonError(f"{network}, {precision}, on {device} is not what autograd computes: {told}")
    off = sum(len(nodes) for nodes in report.off_device.values())
    worst = max(line.error for line in lines)
    return [_row(network, precision, worst, off, round) for round in report.rounds], report


def _row(network: str, precision: str, error: float, off: int, round: Round) -> Row:
    times = {timing.name: 1000 * timing.median for timing in round.timings}
    return Row(network, precision, round.batch, error, times, off)


def table(rows: list[Row]) -> Table:
    """The rows, with what the artifacts save beside PyTorch: above 1, they are faster."""
    found = Table(title="milliseconds; ratios of medians", title_justify="left")
    columns = ("network", "precision", "batch", "error", "forward", "pullback", "to 2 x forward", "per step", "eager")
    for column in (*columns, "eager / pullback", "eager / step", "nodes off the GPU"):
        found.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        forward, pullback, step, eager = (row.milliseconds[name] for name in ("forward", "pullback", "ascent", "eager"))
        times = (f"{value:.2f}" for value in (forward, pullback, pullback / (2 * forward), step, eager))
        saved = (f"{eager / pullback:.2f}", f"{eager / step:.2f}", str(row.off))
        found.add_row(row.network, row.precision, str(row.batch), f"{row.error:.1e}", *times, *saved)
    return found


if __name__ == "__main__":
    main()
