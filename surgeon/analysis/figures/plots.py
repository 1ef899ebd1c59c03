"""Plots of evaluations, by matplotlib, which is an optional extra. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from surgeon.analysis.evaluate.evaluation import CURVES, METRICS, Measured, rank_methods
from surgeon.analysis.evaluate.explanations import Method
from surgeon.bundle.atomic import replacing
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = "pip install 'surgeon[plot]', or '.[plot]' from a checkout"
FORMATS = (".png", ".svg", ".pdf")
_COLOURS = ("#c8452d", "#2d6cc8", "#3f9142", "#8a5ab8", "#c7902a", "#28a0a8")
_CONTROL = "#9a9a9a"
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.spines.top": False,
    "axes.spines.right": False, "svg.fonttype": "none", "axes.axisbelow": True,
}  # fmt: skip


def require(path: Path) -> None:
    """Raise SurgeonError where matplotlib is missing, or the ending of `path` is none of FORMATS."""
    if path.suffix.lower() not in FORMATS:
        raise SurgeonError(f"{path} has no ending of a plot", f"Choose {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SurgeonError("matplotlib is not installed, and plots need it", PLOT) from error


def evaluation(measured: Sequence[dict[str, Measured]], methods: Sequence[Method], path: Path) -> None:
    """Draw mean curves of insertion and deletion over photos, and the means of every other metric, to `path`.

    Bands and whiskers are standard errors. Raises SurgeonError where the file cannot be written, and leaves nothing.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bars = [name for name in METRICS if name not in CURVES]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
        upper, lower = parts
        for place, name in enumerate(CURVES, 1):
            _curves(upper.add_subplot(1, len(CURVES), place), name, measured, methods)
        for place, name in enumerate(bars, 1):
            _bars(lower.add_subplot(1, len(bars), place), name, measured, methods)
        with replacing(path) as partial:
            figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)


def _curves(axes: Axes, name: str, measured: Sequence[dict[str, Measured]], methods: Sequence[Method]) -> None:
    for method, colour in zip(methods, _colours(methods), strict=True):
        rows = numpy.stack([photo[method.name].curves[name] for photo in measured])
        share, mean = numpy.linspace(0, 1, rows.shape[1]), rows.mean(axis=0)
        axes.plot(share, mean, color=colour, label=method.name, linestyle="--" if method.control else "-")
        if len(rows) > 1:
            error = rows.std(axis=0, ddof=1) / numpy.sqrt(len(rows))
            axes.fill_between(share, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
    done = "shown" if name == "insertion" else "removed"
    axes.set(title=name, xlabel=f"share of pixels {done} ({_better(name)})")
    axes.set(ylabel="probability of the class", xlim=(0, 1), ylim=(0, None))
    if name == CURVES[-1]:
        axes.legend(frameon=False)


def _bars(axes: Axes, name: str, measured: Sequence[dict[str, Measured]], methods: Sequence[Method]) -> None:
    values = {method.name: [photo[method.name].values[name] for photo in measured] for method in methods}
    scores = rank_methods(values, METRICS[name])
    places = numpy.arange(len(methods))
    errors = [score.error or 0 for score in scores.values()]
    axes.barh(places, [score.mean for score in scores.values()], xerr=errors, color=_colours(methods), height=0.7)
    axes.set_yticks(places, list(scores))
    axes.invert_yaxis()
    axes.set(title=name, xlabel=_better(name))


def _better(name: str) -> str:
    return "more is better" if METRICS[name] else "less is better"


def _colours(methods: Sequence[Method]) -> list[str]:
    return [_CONTROL if method.control else _COLOURS[at % len(_COLOURS)] for at, method in enumerate(methods)]
