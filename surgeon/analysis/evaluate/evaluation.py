"""Methods of explanation, measured on photos: the random draws, the number of passes, and means with their errors."""

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
from surgeon.bundle.units import Array
from surgeon.runtime.output_units import softmax

METRICS: Mapping[str, bool] = {
    "insertion": True,
    "deletion": False,
    "infidelity": False,
    "max-sensitivity": False,
    "class sensitivity": True,
}
"""What is measured, and whether more of it is better."""
CURVES = ("insertion", "deletion")


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers depend on, except photos and networks."""

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
    """The number of photos that `measure` sends through networks for one photo of its own."""
    explanations = 1 + settings.samples + settings.others
    curves = len(CURVES) * (settings.curve_points - 1) * len(methods)
    ends = 2  # the blurred photo and the grey one; the photo itself is the first of infidelity's
    return curves + ends + 1 + settings.perturbations + explanations * sum(method.passes for method in methods)


def measure(
    photo: Array,
    target: int,
    network: Callable[[Array], Array],
    methods: Sequence[Method],
    image: Image,
    settings: Settings,
) -> dict[str, Measured]:
    """The measures of every method, by name, for one `photo` f32 [C, H, W] and the class `target` of `network`.

    Insertion and deletion watch the class's probability, infidelity its logit. Random draws depend on the seed and the
    photo alone: they are the same for all methods, and beside any other photos. Infidelity takes the explanation
    itself, whose product with a change predicts the logit's drop; the others take its map.
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
    classes = [int(index) for index in random.choice(free, min(settings.others, len(free)), replace=False)]
    drops = answers[0, target] - answers[1:, target].astype(numpy.float64)
    curves_of = _Curves(photo, grey, target, network, answers[0], settings.curve_points)

    def measured(method: Method) -> Measured:
        asked = numpy.concatenate([photo[None], nearby, numpy.repeat(photo[None], len(classes), axis=0)])
        explained = method.explain(asked, [target] * (1 + len(nearby)) + classes)
        maps = MAPS[settings.map](explained, asked)
        here, around, towards = maps[0], maps[1 : 1 + len(nearby)], maps[1 + len(nearby) :]
        curves = curves_of(here)
        values = {name: area(curve) for name, curve in curves.items()}
        values["infidelity"] = infidelity(explained[0], perturbations, drops)
        values["max-sensitivity"] = max_sensitivity(here, around)
        values["class sensitivity"] = class_sensitivity(here, towards)
        return Measured(values, curves)

    return {method.name: measured(method) for method in methods}


class _Curves:
    """Insertion and deletion of one photo: the class's probability as pixels are exchanged in the order of a map.

    Every method's curves begin and end at the same three photos, which the network sees once; `answer` [K] is its
    output for the photo itself.
    """

    def __init__(
        self, photo: Array, grey: Array, target: int, network: Callable[[Array], Array], answer: Array, parts: int
    ) -> None:
        self._target, self._network, self._parts = target, network, parts
        blurred, plain = blur(photo), numpy.broadcast_to(grey, photo.shape)
        at_blurred, at_plain, at_photo = self._probabilities(
            numpy.stack([*network(numpy.stack([blurred, plain])), answer])
        )
        self._ends = {
            "insertion": (blurred, photo, at_blurred, at_photo),
            "deletion": (photo, plain, at_photo, at_plain),
        }

    def __call__(self, map: Array) -> dict[str, Array]:
        """The curves [parts + 1] for one `map` [H, W], by name."""
        curves = {}
        for name, (start, end, first, last) in self._ends.items():
            between = exchanged(start, end, map, self._parts)[1:-1]
            inner: Sequence[float] = [*self._probabilities(self._network(between))] if len(between) else []
            curves[name] = numpy.array([first, *inner, last])
        return curves

    def _probabilities(self, outputs: Array) -> Array:
        return softmax(outputs.astype(numpy.float64), axis=1)[:, self._target]


@dataclass(frozen=True)
class Score:
    """One method under one metric, over photos: the mean, its standard error (None of one photo), and the verdict."""

    mean: float
    error: float | None
    verdict: str  # best; close: its difference from the best, photo by photo, is within two standard errors; or ""


def rank_methods(values: Mapping[str, Sequence[float]], more: bool, controls: Sequence[str] = ()) -> dict[str, Score]:
    """Scores of the methods, from their `values`, one for each photo in the same order; `more`: whether more is better.

    Photos differ more than methods do, so methods are compared photo by photo. `controls` are not compared.
    """
    means = {name: float(numpy.mean(row)) for name, row in values.items()}
    compared = [name for name in values if name not in controls and not math.isnan(means[name])]
    best = (max if more else min)(compared, key=lambda name: means[name]) if compared else None
    scores = {}
    for name, row in values.items():
        verdict = ""
        if name == best:
            verdict = "best"
        elif best is not None and name in compared and len(row) > 1:
            apart = numpy.subtract(row, values[best])
            verdict = "close" if abs(float(apart.mean())) <= 2 * _error(apart) else ""
        scores[name] = Score(means[name], _error(row) if len(row) > 1 else None, verdict)
    return scores


def _error(values: Any) -> float:
    """The standard error of the mean."""
    return float(numpy.std(values, ddof=1) / math.sqrt(len(values)))
