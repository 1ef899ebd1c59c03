"""Methods of explanation, measured on photos: what is drawn, what it costs, and means with their errors. Torch-free."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from surgeon.analysis.evaluate import faithfulness
from surgeon.analysis.evaluate.explanations import Method
from surgeon.analysis.evaluate.faithfulness import (
    MAPS,
    area,
    blur,
    class_sensitivity,
    exchanged,
    infidelity,
    max_sensitivity,
)
from surgeon.bundle.manifest import Image
from surgeon.runtime.session import softmax

Array = numpy.ndarray[Any, numpy.dtype[Any]]

METRICS: Mapping[str, bool] = {
    "insertion": True,
    "deletion": False,
    "infidelity": False,
    "max-sensitivity": False,
    "class sensitivity": True,
}
"""What is measured, and whether more of it is better."""
CURVES = ("insertion", "deletion")
PERTURBATIONS = ("squares", "noise")


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers depend on, beside photos and networks."""

    map: str = "abs"  # of faithfulness.MAPS
    curve_points: int = 32  # of insertion and deletion: points of a curve, less one
    perturbation: str = "squares"  # of infidelity: squares, noise
    perturbations: int = 64  # of infidelity: perturbed photos
    square: float = 1 / 7  # side of a square, in shorter sides of the photo: 32 pixels of 224
    sigma: float = 0.05  # of the noise, in ranges of a pixel
    samples: int = 10  # of max-sensitivity: photos nearby
    radius: float = 0.05  # r, half the side of the cube that they are drawn from, in ranges of a pixel
    others: int = 4  # of class sensitivity: random classes that the map is compared with
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """One method on one photo: each metric's value, and the curves [curve_points + 1] of insertion and deletion."""

    values: dict[str, float]
    curves: dict[str, Array]


def passes(methods: Sequence[Method], settings: Settings) -> int:
    """How many photos `measure` sends through networks for one photo of its own."""
    explanations = 1 + settings.samples + settings.others
    curves = len(CURVES) * (settings.curve_points + 1) * len(methods)
    return curves + 1 + settings.perturbations + explanations * sum(method.passes for method in methods)


def measure(
    photo: Array,
    target: int,
    network: Callable[[Array], Array],
    methods: Sequence[Method],
    image: Image,
    settings: Settings,
) -> dict[str, Measured]:
    """Every method on one `photo` f32 [C, H, W] and the class `target` that `network` is asked about, by name.

    Insertion and deletion watch the class's probability, infidelity its logit. What is drawn at random depends on the
    seed and the photo alone: it is the same for all methods, and whatever other photos there are. Infidelity takes the
    explanation itself, whose product with a change foretells the logit's drop; the others take its map.
    """
    random = numpy.random.default_rng([settings.seed, zlib.crc32(photo.tobytes())])
    low, high = image.range
    mean = (0.5,) * len(photo) if image.mean is None else image.mean
    grey = (low + (high - low) * numpy.array(mean, photo.dtype)).astype(photo.dtype).reshape(-1, 1, 1)
    if settings.perturbation == "squares":
        side = max(1, round(settings.square * min(photo.shape[1:])))
        perturbations = faithfulness.squares(photo, grey, settings.perturbations, side, random)
    else:
        perturbations = faithfulness.noise(photo, settings.perturbations, settings.sigma * (high - low), random)
    r = settings.radius * (high - low)
    nearby = photo + random.uniform(-r, r, (settings.samples, *photo.shape)).astype(photo.dtype)
    answers = network(numpy.concatenate([photo[None], photo - perturbations]))
    free = numpy.setdiff1d(numpy.arange(answers.shape[1]), [target])
    classes = [int(one) for one in random.choice(free, min(settings.others, len(free)), replace=False)]
    drops = answers[0, target] - answers[1:, target].astype(numpy.float64)
    canvas = {"insertion": (blur(photo), photo), "deletion": (photo, numpy.broadcast_to(grey, photo.shape))}

    def probability(photos: Array) -> Array:
        return softmax(network(photos).astype(numpy.float64), axis=1)[:, target]

    def one(method: Method) -> Measured:
        asked = numpy.concatenate([photo[None], nearby, numpy.repeat(photo[None], len(classes), axis=0)])
        explained = method.explain(asked, [target] * (1 + len(nearby)) + classes)
        maps = MAPS[settings.map](explained, asked)
        here, around, towards = maps[0], maps[1 : 1 + len(nearby)], maps[1 + len(nearby) :]
        curves = {name: probability(exchanged(*canvas[name], here, settings.curve_points)) for name in CURVES}
        values = {name: area(curve) for name, curve in curves.items()}
        values["infidelity"] = infidelity(explained[0], perturbations, drops)
        values["max-sensitivity"] = max_sensitivity(here, around)
        values["class sensitivity"] = class_sensitivity(here, towards)
        return Measured(values, curves)

    return {method.name: one(method) for method in methods}


@dataclass(frozen=True)
class Score:
    """One method under one metric, over photos: the mean, its standard error (None of one photo), and the verdict."""

    mean: float
    error: float | None
    verdict: str  # best; close: its difference from the best, photo by photo, is within two standard errors; or ""


def rank_methods(values: Mapping[str, Sequence[float]], more: bool, controls: Sequence[str] = ()) -> dict[str, Score]:
    """What each method's `values`, one for each photo in the same order, come to; `more` says whether more is better.

    Photos differ more than methods do, so methods are compared photo by photo. `controls` take no part in that.
    """
    means = {name: float(numpy.mean(row)) for name, row in values.items()}
    compared = [name for name in values if name not in controls and not math.isnan(means[name])]
    best = (max if more else min)(compared, key=lambda name: means[name]) if compared else None
    found = {}
    for name, row in values.items():
        verdict = ""
        if name == best:
            verdict = "best"
        elif best is not None and name in compared and len(row) > 1:
            apart = numpy.subtract(row, values[best])
            verdict = "close" if abs(float(apart.mean())) <= 2 * _error(apart) else ""
        found[name] = Score(means[name], _error(row) if len(row) > 1 else None, verdict)
    return found


def _error(values: Any) -> float:
    """The standard error of the mean."""
    return float(numpy.std(values, ddof=1) / math.sqrt(len(values)))
