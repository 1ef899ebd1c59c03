"""Explanations of a network's answers by running bundles: pullbacks, SmoothGrad of them, and noise. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from surgeon.runtime.session import Session

Array = numpy.ndarray[Any, numpy.dtype[Any]]
Explain = Callable[[Array, Sequence[int]], Array]
"""Photos f32 [N, C, H, W] and the class asked for of each, to explanations of the photos' shape."""
Tick = Callable[[int], object]
"""Told how many photos have gone through a network."""

BATCH = 16
"""Photos that are run in one call: enough for any machine, few enough for progress to be seen."""


@dataclass(frozen=True)
class Method:
    """A way to explain. `passes` is how many pullbacks one explanation takes; `facts` say how it is made."""

    name: str
    explain: Explain
    passes: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    control: bool = False  # what others are to be told apart from, and no contestant


def pullbacks(name: str, session: Session, temperature: float | None, tick: Tick) -> Method:
    """The pullback of the class's logit through the bundle of `session`, at `temperature` (None: its default)."""

    def explain(photos: Array, classes: Sequence[int]) -> Array:
        cotangent = session.one_hot(classes)
        found = []
        for at in range(0, len(photos), BATCH):
            piece = slice(at, at + BATCH)
            found.append(session.pullback(photos[piece], cotangent[piece], temperature).pullback)
            tick(len(found[-1]))
        return numpy.concatenate(found)

    recipe = session.manifest.recipe
    facts = {"bundle": str(session.bundle.path), "gate": recipe.gate, "pool": recipe.pool, "temperature": temperature}
    return Method(name, explain, 1, facts)


def smoothgrad(name: str, inner: Method, samples: int, level: float, seed: int) -> Method:
    """The mean of `inner` over `samples` photos with noise (Smilkov et al. 2017, arXiv 1706.03825, section 2.2).

    The noise is normal, of `level` times the photo's own range (the paper: 0.1 to 0.2, and no gain beyond 50 samples).
    It is the same for every photo: that two photos are explained differently is not to be the noise's doing.
    """

    def explain(photos: Array, classes: Sequence[int]) -> Array:
        drawn = numpy.random.default_rng(seed).standard_normal((samples, *photos.shape[1:]), numpy.float32)
        found = []
        for photo, wanted in zip(photos, classes, strict=True):
            sigma = numpy.float32(level) * (photo.max() - photo.min())
            found.append(inner.explain(photo + sigma * drawn, [wanted] * samples).mean(axis=0))
        return numpy.stack(found)

    return Method(name, explain, samples * inner.passes, {**inner.facts, "samples": samples, "level": level})


def random(name: str, seed: int) -> Method:
    """Noise that looks at nothing: what a measure gives to an explanation that explains nothing."""
    generator = numpy.random.default_rng(seed)

    def explain(photos: Array, _classes: Sequence[int]) -> Array:
        return numpy.asarray(generator.standard_normal(photos.shape, numpy.float32))

    return Method(name, explain, 0, control=True)


def network(session: Session, tick: Tick) -> Callable[[Array], Array]:
    """The network itself, photos f32 [N, C, H, W] to its outputs [N, K]."""

    def run(photos: Array) -> Array:
        found = []
        for at in range(0, len(photos), BATCH):
            piece = photos[at : at + BATCH]
            nothing = numpy.zeros((len(piece), session.classes), numpy.float32)
            found.append(session.pullback(piece, nothing).output)
            tick(len(piece))
        return numpy.concatenate(found)

    return run
