"""The temperatures that `surgeon calibrate` tried, as a table for people and as plain data for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.cli.reports import tables

if TYPE_CHECKING:
    from rich.console import Console

    from surgeon.analysis.evaluate.calibration import Tried
    from surgeon.cli.reports.tables import Fitted


def show(
    console: Console,
    bundle: Path,
    tried: Sequence[Tried],
    best: Tried | None,
    photos: int,
    strip: Path | None,
    write: bool,
) -> None:
    """Print the table, the reason for `best`, and what was written, or how to write it."""
    console.print(table(tried, best))
    if best is not None:
        console.print(_reason(tried, best, photos), soft_wrap=True)
    if strip is not None:
        console.print(f"strip: {strip}", style="dim", soft_wrap=True, markup=False)
    if best is not None:
        print_next(console, bundle, best.candidate.temperature, write)


def print_next(console: Console, bundle: Path, temperature: float | tuple[float, ...], written: bool) -> None:
    """One line: what was written, or the command that writes it."""
    if isinstance(temperature, tuple):
        value, command = "a temperature for each gate", f"calibrate {bundle} PHOTO... --per-gate --write"
    else:
        value, command = f"T = {temperature:g}", f"set-temperature {bundle} {temperature:g}"
    if written:
        console.print(f"{bundle}: {value} written as the default", soft_wrap=True, markup=False)
    else:
        console.print(f"Next: surgeon {command}", style="dim", soft_wrap=True, markup=False)


def table(tried: Sequence[Tried], best: Tried | None) -> Fitted:
    """One line for each temperature; `best` is the chosen one, if any is."""
    from rich.text import Text

    heads = ("stability", "targets", "photos", "gain", "product")
    rows = []
    for trial in tried:
        numbers = (trial.stability, trial.targets, trial.photos, trial.gain, trial.product)
        name = trial.candidate.name + (" × std of the gate" if trial.candidate.per_gate else "")
        cells = [name, *(f"{number:.3f}" for number in numbers), "chosen" if trial is best else ""]
        rows.append([Text(cell, "bold" if trial is best else "") for cell in cells])
    return tables.table("", ("temperature", *heads, ""), rows, right=heads)


def facts(tried: Sequence[Tried], best: Tried | None) -> dict[str, Any]:
    """Every trial, and the chosen temperature."""
    rows = [{**dataclasses.asdict(trial), "product": trial.product, "chosen": trial is best} for trial in tried]
    chosen = best and {"factor": best.candidate.factor, "temperature": best.candidate.temperature}
    return {"chosen": chosen, "tried": rows}


def _reason(tried: Sequence[Tried], best: Tried, photos: int) -> str:
    """The reason for `best`, and the temperatures that come near."""
    from surgeon.analysis.evaluate.calibration import CLOSE

    close = [trial for trial in tried if trial.product >= CLOSE * best.product and trial is not best]
    named = ", ".join(trial.candidate.name for trial in close)
    tied = f"; within {100 - 100 * CLOSE:.0f} % of it: {named}" if close else ""
    return f"chosen: {best.candidate.name}, whose product of the four, means over {photos} photos, is the largest{tied}"
