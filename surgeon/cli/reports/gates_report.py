"""The numbers of `surgeon gates`, as a table for people and as plain data for scripts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgeon.cli.reports import tables

if TYPE_CHECKING:
    from surgeon.analysis.evaluate.gate_statistics import PhotoStatistics
    from surgeon.cli.reports.tables import Fitted


def table(photo: PhotoStatistics) -> Fitted:
    """One line for the input, then one for each gate and pool, from the input to the output."""
    from surgeon.analysis.evaluate.gate_statistics import QUANTILES

    heads = ["T", *(f"{100 * share:g} %" for share in QUANTILES), "near", "open", "|soft-hard|", "cosine"]
    heads[1] = f"z/T {heads[1]}"
    rows = [["(input)", *[""] * (len(heads) - 1), _number(photo.cosine)]]
    modules = [gate.module for gate in photo.gates]
    for gate in photo.gates:
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


def definition(near: float, targets: Sequence[str]) -> str:
    """The meaning of the columns."""
    named = ", ".join(dict.fromkeys(target.split(",")[0] for target in targets))
    return (
        f"z: the gate's input, from the edge where it opens. near: |z/T| < {near:g}. open: z > 0. |soft-hard|: "
        "mean over the units, a hard gate being shut at z = 0.\ncosine: of the cotangents that arrive at the gate's "
        f"output under soft and under hard gates (at the input: pullback and gradient), pulled back from: {named}.\n"
        f"Means over {len(targets)} photo{'s' if len(targets) > 1 else ''}."
    )


def facts(photo: PhotoStatistics) -> dict[str, Any]:
    """The numbers as JSON values; null where there is no angle."""
    from surgeon.analysis.evaluate.gate_statistics import QUANTILES

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    gates = []
    for gate in photo.gates:
        plain = {name: known(value) for name, value in dataclasses.asdict(gate).items()}
        if gate.quantiles is not None:
            plain["quantiles"] = {f"{share:g}": q for share, q in zip(QUANTILES, gate.quantiles, strict=True)}
        gates.append(plain)
    return {"cosine": known(photo.cosine), "gates": gates}
