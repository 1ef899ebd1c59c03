"""Where commands write: tables and JSON on standard output, progress on standard error when it is a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def console(error: bool = False) -> Console:
    """A console on standard output or error; wide where no terminal limits it, so that lines are cut for nobody."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else 120)


def progress(quiet: bool = False) -> Progress:
    """A progress bar with an estimate, on standard error: silent unless that is a terminal, or where it is `quiet`."""
    from rich.progress import TimeRemainingColumn

    return _bar(TimeRemainingColumn(), quiet)


@contextmanager
def waiting(doing: str, quiet: bool = False) -> Iterator[None]:
    """As `progress`, around what tells nothing of how far it is: how long it has taken is all that is shown."""
    from rich.progress import TimeElapsedColumn

    with _bar(TimeElapsedColumn(), quiet) as bar:
        bar.add_task(doing, total=None)
        yield


def _bar(time: ProgressColumn, quiet: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        time,
        console=Console(file=sys.stderr),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


def print_json(data: Any) -> None:
    """One strict JSON object on standard output; an infinity is written as a string, as in the manifest.

    In ASCII: a file name need not be in the terminal's encoding, nor in any.
    """
    from surgeon.bundle.manifest import strict

    click.echo(json.dumps(strict(data), indent=1, allow_nan=False))


def warn_off_device(
    console: Console, off_device: Mapping[str, tuple[str, ...]], fallback: Mapping[str, tuple[str, ...]]
) -> None:
    """Of each artifact, the nodes that are not where they were asked for."""
    for found, where in ((off_device, "run on the CPU"), (fallback, "are left to CUDA")):
        for name, nodes in found.items():
            if nodes:
                told = f"{name}: {len(nodes)} nodes {where}: {', '.join(nodes[:5])}{', …' if nodes[5:] else ''}"
                console.print(told, style="yellow", markup=False, soft_wrap=True)


def size_text(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"
