"""Explanations of a network's answers by running bundles: pullbacks, SmoothGrad of them, and noise. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from surgeon.bundle.units import Array
from surgeon.runtime.session import Session

Explain = Callable[[Array, Sequence[int]], Array]
"""Explanations, of the photos' shape, of photos f32 [N, C, H, W] and a class for each."""
Tick = Callable[[int], object]
"""Called with the number of photos that have just gone through a network."""

BATCH = 20
"""Photos in one call: SmoothGrad's by default, enough for any machine, and few enough for visible progress."""


@dataclass(frozen=True)
class Method:
    """A way to explain. One explanation takes `passes` pullbacks; `facts` are its parameters."""

    name: str
    explain: Explain
    passes: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    control: bool = False  # a baseline for the others, and no contestant


def pullbacks(name: str, session: Session, temperature: float | None, tick: Tick) -> Method:
    """The pullback of the class's logit through the bundle of `session`, at `temperature` (None: its default)."""

    def explain(photos: Array, classes: Sequence[int]) -> Array:
        cotangent = session.one_hot(classes)
        pulled = []
        for at in range(0, len(photos), BATCH):
            piece = slice(at, at + BATCH)
            pulled.append(session.pullback(photos[piece], cotangent[piece], temperature).pullback)
            tick(len(pulled[-1]))
        return numpy.concatenate(pulled)

    recipe = session.manifest.recipe
    facts = {"bundle": str(session.bundle.path), "gate": recipe.gate, "pool": recipe.pool, "temperature": temperature}
    return Method(name, explain, 1, facts)


def smoothgrad(name: str, inner: Method, samples: int, level: float, seed: int) -> Method:
    """The mean of `inner` over `samples` photos with noise (Smilkov et al. 2017, arXiv 1706.03825, section 2.2).

    The noise is normal, of `level` times the photo's own range (the paper: 0.1 to 0.2, and no gain beyond 50 samples).
    It is the same for every photo, so that it makes no difference between two explanations.
    """

    def explain(photos: Array, classes: Sequence[int]) -> Array:
        drawn = numpy.random.default_rng(seed).standard_normal((samples, *photos.shape[1:]), numpy.float32)
        means = []
        for photo, index in zip(photos, classes, strict=True):
            sigma = numpy.float32(level) * (photo.max() - photo.min())
            means.append(inner.explain(photo + sigma * drawn, [index] * samples).mean(axis=0))
        return numpy.stack(means)

    return Method(name, explain, samples * inner.passes, {**inner.facts, "samples": samples, "level": level})


def random(name: str, seed: int) -> Method:
    """Random noise: its score is each metric's baseline."""
    generator = numpy.random.default_rng(seed)

    def explain(photos: Array, _classes: Sequence[int]) -> Array:
        return numpy.asarray(generator.standard_normal(photos.shape, numpy.float32))

    return Method(name, explain, 0, control=True)


def network(session: Session, tick: Tick) -> Callable[[Array], Array]:
    """The network itself, photos f32 [N, C, H, W] to its outputs [N, K]."""

    def run(photos: Array) -> Array:
        outputs = []
        for at in range(0, len(photos), BATCH):
            piece = photos[at : at + BATCH]
            outputs.append(session.output(piece))
            tick(len(piece))
        return numpy.concatenate(outputs)

    return run
