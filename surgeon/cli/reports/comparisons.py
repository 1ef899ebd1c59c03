"""The verification report, as a person reads it and as a script does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgeon.cli.reports import tables

if TYPE_CHECKING:
    from surgeon.bundle.manifest import Comparison
    from surgeon.cli.reports.tables import Fitted


def table(lines: Sequence[Comparison]) -> Fitted:
    """Each comparison with autograd: the quantity, the relative L2 error, and the tolerance."""
    from rich.text import Text

    rows, last = [], ""
    for line in lines:
        verdict = Text("close", "green") if line.passed else Text("OFF", "bold red")
        name, last = "" if line.artifact == last else line.artifact, line.artifact
        rows.append([name, line.quantity, line.condition, f"{line.error:.1e}", f"{line.tolerance:.0e}", verdict])
    numbers = ("error", "allowed")
    return tables.table("", ("artifact", "quantity", "at", *numbers, ""), rows, right=numbers)


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
