"""Numbers of a network's gates at a photo, from the outputs of `gates.onnx`. Torch-free.

For each gate, over all its units:

    z/T           its input, counted from the edge where it opens (a ReLU6's lower one), over its temperature
    near          the share of units with |z/T| < `near`, where soft and hard gates differ most
    open          the share with z > 0
    |soft - hard| the mean difference of the two gates; a hard one is 1[z > 0], shut at z = 0 (and, in a ReLU6, at 6)
    cosine        between the cotangents that arrive at its output under soft gates and under hard ones, pulled back
                  from the same cotangent at the network's output: 1 where no layer above has turned the pullback

A soft max pool has no z, and its cosine is that at its own output. At the input, the cosine is between the excitation
pullback and the ordinary gradient. "Under hard gates" every soft gate and pool is hard; all others stay the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from surgeon.bundle.manifest import Manifest
from surgeon.bundle.ports import GATE_GAP, HARD, PRE_ACTIVATION, SOFT
from surgeon.bundle.units import Array

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEAR = 1.0


@dataclass(frozen=True)
class GateStatistics:
    """One gate or pool at one photo, or its means over several; see this file's head."""

    node: str
    module: str
    kind: str  # gate, pool
    temperature: float
    quantiles: tuple[float, ...] | None  # of z/T, at QUANTILES; None, as the next three, for a pool
    near: float | None
    open: float | None
    gap: float | None  # mean |soft - hard|
    cosine: float  # nan where one of the cotangents is zero


@dataclass(frozen=True)
class PhotoStatistics:
    """All gates and pools in forward order, and the cosine at the input."""

    gates: tuple[GateStatistics, ...]
    cosine: float


def statistics(
    manifest: Manifest,
    values: Mapping[str, Array],
    temperature: float | Sequence[float] | None = None,
    near: float = NEAR,
) -> PhotoStatistics:
    """The numbers of one photo, from what `Session.gates` returns at `temperature` (None: the bundle's default)."""
    temperatures = manifest.gate_temperatures(temperature)
    numbers = []
    for gate, gate_temperature in zip(manifest.gates, temperatures, strict=True):
        if not gate.soft:
            continue
        turned = cosine(values[f"{SOFT}/{gate.node}"], values[f"{HARD}/{gate.node}"])
        statistic = GateStatistics(gate.node, gate.module, gate.kind, gate_temperature, None, None, None, None, turned)
        if gate.kind == "gate":
            z = values[f"{PRE_ACTIVATION}/{gate.node}"].astype(numpy.float64).ravel()
            statistic = dataclasses.replace(
                statistic,
                quantiles=tuple(float(q) for q in numpy.quantile(z / gate_temperature, QUANTILES)),
                near=float((numpy.abs(z / gate_temperature) < near).mean()),
                open=float((z > 0).mean()),
                gap=float(values[f"{GATE_GAP}/{gate.node}"]),
            )
        numbers.append(statistic)
    return PhotoStatistics(tuple(numbers), cosine(values["pullback"], values["gradient"]))


def mean(photos: Sequence[PhotoStatistics]) -> PhotoStatistics:
    """The mean of every number over the photos: a quantile is the mean of the photos' quantiles, not one of all units.

    Zero cotangents, which have no angle, are left out.
    """
    gates = []
    for alike in zip(*(photo.gates for photo in photos), strict=True):
        first = dataclasses.replace(alike[0], cosine=_mean([photo.cosine for photo in alike]))
        if first.quantiles is not None:
            rows = [photo.quantiles for photo in alike if photo.quantiles is not None]
            first = dataclasses.replace(
                first,
                quantiles=tuple(_mean(column) for column in zip(*rows, strict=True)),
                **{name: _mean([getattr(photo, name) for photo in alike]) for name in ("near", "open", "gap")},
            )
        gates.append(first)
    return PhotoStatistics(tuple(gates), _mean([photo.cosine for photo in photos]))


def cosine(a: Array, b: Array) -> float:
    """The cosine of the angle between two tensors of one shape, as vectors; nan where one of them is zero."""
    x, y = (value.astype(numpy.float64).ravel() for value in (a, b))
    # Scaled first: cotangents deep in a network may be so small that their squares vanish.
    lengths = [float(numpy.abs(vector).max(initial=0.0)) for vector in (x, y)]
    if 0.0 in lengths:
        return math.nan
    x, y = x / lengths[0], y / lengths[1]
    return float(x @ y / math.sqrt(float(x @ x) * float(y @ y)))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
