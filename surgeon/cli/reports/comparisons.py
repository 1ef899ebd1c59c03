"""The verification report, as a person reads it and as a script does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from surgeon.bundle.manifest import Comparison


def table(lines: Sequence[Comparison]) -> Table:
    """What was compared with autograd, how far apart they were (relative L2), and what is allowed."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    report = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("artifact", "quantity", "at"):
        report.add_column(heading, overflow="fold")
    for heading in ("error", "allowed"):
        report.add_column(heading, justify="right", no_wrap=True)
    report.add_column("")
    last = ""
    for line in lines:
        verdict = "[green]close[/]" if line.passed else "[bold red]OFF[/]"
        name, last = "" if line.artifact == last else line.artifact, line.artifact
        report.add_row(name, line.quantity, line.condition, f"{line.error:.1e}", f"{line.tolerance:.0e}", verdict)
    return report


def summary(lines: Sequence[Comparison]) -> str:
    """One line: how many comparisons were close, and the worst of them against its tolerance."""
    if not lines:
        return "not verified"
    passed = sum(line.passed for line in lines)
    worst = max(lines, key=lambda line: line.error / line.tolerance)
    return (
        f"{passed} of {len(lines)} comparisons with autograd close; the worst: {worst.quantity} of {worst.artifact}, "
        f"{worst.error:.1e} of {worst.tolerance:.0e} allowed"
    )


def facts(lines: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The report as plain data."""
    return [{**dataclasses.asdict(line), "passed": line.passed} for line in lines]
