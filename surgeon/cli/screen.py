"""Where commands write: tables and JSON on standard output, progress on standard error when it is a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def console(error: bool = False) -> Console:
    """A console on standard output or error; wide where no terminal limits it, so that no line is cut."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else 120)


def progress(quiet: bool = False) -> Progress:
    """A progress bar with an estimate, on standard error: silent unless that is a terminal, or where it is `quiet`."""
    from rich.progress import TimeRemainingColumn

    return _bar(TimeRemainingColumn(), quiet)


@contextmanager
def waiting(doing: str, quiet: bool = False) -> Iterator[None]:
    """As `progress`, for work that cannot report how far it is: shows the time that it has taken."""
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


class _Ran(Protocol):
    """A session, or the report of a benchmark."""

    @property
    def off_device(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def fallback(self) -> Mapping[str, tuple[str, ...]]: ...


def warn_off_device(*ran: _Ran, to: Console | None = None) -> None:
    """Print, `to` standard error, the nodes of each artifact that do not run where they were asked for."""
    errors = to or console(error=True)
    for source in ran:
        for artifacts, where in ((source.off_device, "run on the CPU"), (source.fallback, "are left to CUDA")):
            for name, nodes in artifacts.items():
                if nodes:
                    listed = f"{', '.join(nodes[:5])}{', …' if nodes[5:] else ''}"
                    text = f"{name}: {len(nodes)} nodes {where}: {listed}"
                    errors.print(text, style="yellow", markup=False, soft_wrap=True)


def size_text(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"
