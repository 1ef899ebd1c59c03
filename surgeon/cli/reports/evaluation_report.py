"""The results of `surgeon evaluate`, as a table for people and as plain data for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.cli.reports.tables import table

if TYPE_CHECKING:
    from rich.console import Console

    from surgeon.analysis.evaluate.evaluation import Measured, Score, Settings
    from surgeon.analysis.evaluate.explanations import Method
    from surgeon.runtime.session import Session

MARKS = {"best": "*", "close": "~", "": " "}


def show(
    console: Console,
    measured: Sequence[dict[str, Measured]],
    methods: Sequence[Method],
    settings: Settings,
    plot: Path | None = None,
) -> None:
    """Print a row for each method, mean and standard error over photos, the best marked; and the place of the plot."""
    from rich.text import Text

    from surgeon.analysis.evaluate.evaluation import METRICS

    columns = summary(measured, methods)
    heads = [f"{name} {'↑' if more else '↓'}" for name, more in METRICS.items()]
    rows = []
    for method in methods:
        style = "dim" if method.control else ""
        cells = [_cell(columns[name][method.name]) for name in METRICS]
        rows.append([Text(method.name, style), *(Text(text, shade or style) for text, shade in cells)])
    console.print(table("", ("method", *heads), rows, right=heads))
    legend = "1 photo. ↑ more is better, ↓ less. * best."
    if len(measured) > 1:
        legend = (
            f"{len(measured)} photos; mean ± standard error. ↑ more is better, ↓ less. * best; ~ within two standard "
            "errors of it, photo by photo."
        )
    console.print(legend, style="dim", soft_wrap=True)
    console.print(described(settings, methods), style="dim", soft_wrap=True)
    if plot is not None:
        console.print(f"plot: {plot}", soft_wrap=True, markup=False)


def summary(measured: Sequence[dict[str, Measured]], methods: Sequence[Method]) -> dict[str, dict[str, Score]]:
    """The score of every method under every metric, by metric and method."""
    from surgeon.analysis.evaluate.evaluation import METRICS, rank_methods

    controls = [method.name for method in methods if method.control]
    return {
        metric: rank_methods(
            {method.name: [photo[method.name].values[metric] for photo in measured] for method in methods},
            more,
            controls,
        )
        for metric, more in METRICS.items()
    }


def described(settings: Settings, methods: Sequence[Method]) -> str:
    """Every parameter, in a line."""
    what = f"squares of {settings.square:.2g} sides" if settings.perturbation == "squares" else f"σ {settings.sigma:g}"
    smooth = [f"SmoothGrad of {m.facts['samples']}, σ {m.facts['level']:g}" for m in methods if "samples" in m.facts]
    parts = [
        f"map {settings.map}",
        f"curves in {settings.curve_points} steps",
        f"infidelity of {settings.perturbations} perturbations ({what})",
        f"sensitivity of {settings.samples} samples, r {settings.radius:g}",
        f"{settings.others} other classes",
        *smooth,
        f"seed {settings.seed}",
    ]
    return "; ".join(parts) + ". Lengths in ranges of a pixel."


def facts(
    session: Session,
    results: Sequence[tuple[Path, int, dict[str, Measured]]],
    methods: Sequence[Method],
    settings: Settings,
    device: str,
) -> dict[str, Any]:
    """Settings, each photo's numbers, and the means."""
    from surgeon.analysis.evaluate.evaluation import METRICS

    measured = [result for _, _, result in results]
    return {
        "bundle": str(session.bundle.path),
        "device": device,
        "settings": dataclasses.asdict(settings),
        "metrics": {name: "more" if more else "less" for name, more in METRICS.items()},
        "methods": [{"name": method.name, "control": method.control, **method.facts} for method in methods],
        "summary": {
            metric: {name: dataclasses.asdict(score) for name, score in row.items()}
            for metric, row in summary(measured, methods).items()
        },
        "photos": [
            {
                "photo": str(photo),
                "target": {"index": target, "label": session.label(target)},
                "methods": {name: measures.values for name, measures in by_method.items()},
            }
            for photo, target, by_method in results
        ],
    }


def _cell(score: Score) -> tuple[str, str]:
    """The text of a cell, and its colour."""
    error = "" if score.error is None else f" ± {score.error:.3f}"
    return f"{score.mean:.3f}{error} {MARKS[score.verdict]}", "bold green" if score.verdict == "best" else ""
