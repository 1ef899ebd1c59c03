"""A plot of the gates' numbers in order of depth, by matplotlib, which is imported when it is needed."""

from __future__ import annotations

from pathlib import Path

from surgeon.analysis.evaluate.gate_statistics import QUANTILES, PhotoStatistics
from surgeon.analysis.figures import plots
from surgeon.bundle.atomic import replacing

_BLUE, _RED, _GREY = "#2b6ca3", "#c8452d", "#6b6b6b"


def draw(path: Path, found: PhotoStatistics, title: str, near: float) -> None:
    """Write three panels to `path`: z/T, shares of the units, and the angle by which the pullback has turned.

    Raises SurgeonError as `plots.require` does, and where the file cannot be written.
    """
    plots.require(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    gates = [(place, gate) for place, gate in enumerate(found.gates, 1) if gate.quantiles is not None]
    places = [place for place, _ in gates]
    figure = Figure(figsize=(9, 9), layout="constrained")
    distribution, shares, angles = figure.subplots(3, 1, sharex=True)
    columns = list(zip(*(gate.quantiles or () for _, gate in gates), strict=True))
    if columns:
        low, lower, median, upper, high = columns
        distribution.fill_between(places, low, high, color=_BLUE, alpha=0.15, lw=0, label=_percent(0, -1))
        distribution.fill_between(places, lower, upper, color=_BLUE, alpha=0.35, lw=0, label=_percent(1, -2))
        distribution.plot(places, median, color=_BLUE, label="median")
        for name, colour, label in (
            ("open", _GREY, "open: z > 0"),
            ("near", _BLUE, f"near: |z/T| < {near:g}"),
            ("gap", _RED, "mean |soft − hard|"),
        ):
            shares.plot(places, [getattr(gate, name) for _, gate in gates], ".-", color=colour, label=label)
        for panel in (distribution, shares):
            panel.legend(loc="upper right", frameon=False, fontsize=8)
    distribution.axhspan(-near, near, color=_RED, alpha=0.12, lw=0)
    distribution.set_yscale("symlog", linthresh=max(near, 1e-6))
    distribution.set_ylabel("z/T")
    shares.set_ylim(0, 1)
    shares.set_ylabel("share of units")
    angles.plot([0, *range(1, len(found.gates) + 1)], [found.cosine, *(gate.cosine for gate in found.gates)], ".-")
    angles.axhline(0, color=_GREY, lw=0.5)
    angles.set_ylim(top=1.03)
    angles.set_ylabel("cosine of soft and hard cotangent")
    angles.set_xlabel("gate or pool, from the input (0) to the output")
    angles.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=120)


def _percent(first: int, last: int) -> str:
    return f"{100 * QUANTILES[first]:.0f} to {100 * QUANTILES[last]:.0f} % of the units"
