"""Choosing the temperature of a bundle from photos, by running its artifacts. Torch-free.

**The argument**, made before any trial. A pullback is meant as evidence of what a network sees in a photo. T = 0 gives
the ordinary gradient, which changes from one region of linearity to the next; at T = infinity every gate is a half and
every pool an average, and the pullback is that of one linear network, the same at every photo. Between the two, four
properties of good evidence can be measured without looking at it:

- *stability*. A photo moved by some pixels, or with a little noise on it, shows the same thing, so its pullback should
  be the same: the cosine between the photo's pullback and that of each version, moved back, where they overlap. It
  rises with T, and alone would choose T = infinity.
- *targets*. Pullbacks towards different classes should differ: 1 - the cosine between two of them at one photo. An
  explanation that is the same for every class explains none.
- *photos*. Pullbacks at different photos towards one class should differ: 1 - their cosine. A pullback that does not
  depend on the photo is no evidence of its content. It falls to 0 as T grows.
- *gain*. A step along the pullback should raise the objective: the rise per unit of L2 moved, over an ascent with the
  bundle's own steps and not over an infinitesimal one, where the gradient wins by its definition. Each photo's gain is
  divided by the largest that any temperature gave.

Each is a mean over the photos of a number in [0, 1] (negative cosines and gains count as 0). They are multiplied, since
a failure at one is a failure, and the largest product is chosen. There are no weights, so nothing can be fitted to a
picture; the strip of pictures lets a person overrule the choice.

With a temperature for each gate, T_l = t * s_l, where s_l is the standard deviation of gate l's input, over all units
and photos: each gate's threshold is then as wide in its own units. t is chosen by the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from surgeon.analysis.evaluate.gate_statistics import cosine
from surgeon.bundle.ports import PRE_ACTIVATION
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError
from surgeon.runtime.session import Session

MOVED = 0.02
"""A photo's move, as a share of its shorter side, made an odd number of pixels: strides of two hide even ones."""

NOISE = 0.02
"""Standard deviation of the noise, as a share of the value range."""

CLOSE = 0.95
"""Products from this share of the largest up are reported as nearly as good."""


_SET = "Choose T yourself: `surgeon set-temperature`"


@dataclass(frozen=True)
class Candidate:
    """A temperature to try: `factor` for all gates, or `factor` times each gate's own scale."""

    factor: float
    temperature: float | tuple[float, ...]

    @property
    def name(self) -> str:
        """T and the number, or t and the factor."""
        return f"{'t' if self.per_gate else 'T'} {self.factor:g}"

    @property
    def per_gate(self) -> bool:
        """Whether each gate has its own."""
        return isinstance(self.temperature, tuple)


@dataclass(frozen=True)
class Tried:
    """A candidate, and its criteria: means over the photos, each in [0, 1]."""

    candidate: Candidate
    stability: float
    targets: float
    photos: float
    gain: float

    @property
    def product(self) -> float:
        """The number whose largest is chosen."""
        return self.stability * self.targets * self.photos * self.gain


@dataclass(frozen=True)
class Seen:
    """One candidate at one photo: three criteria, the rise per unit of L2 moved, and where the ascent ended."""

    stability: float
    targets: float
    photos: float
    rise: float
    perturbed: Array  # [C, H, W]


def require(session: Session, photos: int, per_gate: bool) -> None:
    """Raise SurgeonError where the criteria cannot be measured with so many photos."""
    path = session.bundle.path
    if photos < 2:
        raise SurgeonError("one photo was given, and pullbacks at different photos are compared", "Give two or more")
    if session.manifest.recipe.objective == "energy":
        raise SurgeonError(f"the objective of {path} is energy, which has no target classes", _SET)
    if session.extra_inputs:
        raise SurgeonError(f"{path} takes {session.extra_inputs[0].name} beside the photo", _SET)
    if not session.has_classes:
        raise SurgeonError(f"the output of {path} is no row of classes to pull back from", _SET)
    if per_gate:
        session.require_gates()
        if session.manifest.recipe.temperature_input != "per-gate":
            raise SurgeonError(
                f"{path} takes one temperature for all gates", "Export it with --temperature-input per-gate"
            )


def grid(lowest: float, highest: float, count: int) -> list[float]:
    """`count` numbers from `lowest` to `highest`, evenly spaced by logarithm, to two digits or as many as they need."""
    values = numpy.geomspace(lowest, highest, count)
    rounded: set[float] = set()
    for digits in range(2, 17):
        rounded = {float(f"{value:.{digits}g}") for value in values}
        if len(rounded) == count:
            break
    return sorted(rounded)


def scales(session: Session, images: Sequence[Array], tick: Callable[[], None] = lambda: None) -> tuple[float, ...]:
    """The standard deviation of each gate's input, in the manifest's order, over all units and `images` [C, H, W].

    1 where nothing varies, and for gates and pools that are not soft, which read no temperature. Raises SurgeonError
    for a bundle without its gates' outputs.
    """
    soft = [gate.node for gate in session.manifest.gates if gate.soft]
    sums = {node: numpy.zeros(3) for node in soft}
    for image in images:
        values = session.gates(image[None], session.one_hot(0))
        for node in soft:
            before = values[f"{PRE_ACTIVATION}/{node}"].astype(numpy.float64)
            sums[node] += (before.size, before.sum(), numpy.square(before).sum())
        tick()
    deviations = {}
    for node, (count, total, squares) in sums.items():
        deviations[node] = math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
    return tuple(deviations.get(gate.node, 0.0) or 1.0 for gate in session.manifest.gates)


def best_two(session: Session, image: Array) -> tuple[int, int]:
    """The network's two most probable classes for `image` [C, H, W]; raises SurgeonError if it has one class."""
    if session.classes < 2:
        raise SurgeonError("the network has one class, and pullbacks towards two are compared", _SET)
    output = session.output(image[None])[0]
    first, second = numpy.argsort(-output, kind="stable")[:2]
    return int(first), int(second)


def look(
    session: Session,
    images: Sequence[Array],
    classes: Sequence[tuple[int, int]],
    candidate: Candidate,
    steps: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Seen]:
    """The criteria of one candidate at each of two or more `images` [C, H, W], whose `best_two` are `classes`.

    `tick` is called after each. The second class is the next photo's, or the runner-up where that is its own.
    """
    own, second = zip(*classes, strict=True)
    following = [*own[1:], own[0]]
    found, pulled = [], []
    for place, image in enumerate(images):
        other = following[place] if following[place] != own[place] else second[place]
        towards = (own[place], other, following[place])
        batch = numpy.repeat(image[None], len(towards), axis=0)
        pulled.append(session.pullback(batch, session.one_hot(towards), candidate.temperature).pullback)
        ascent = session.ascent(
            image[None], session.one_hot(own[place]), steps=steps, temperature=candidate.temperature
        )
        distance = float(numpy.linalg.norm(ascent.perturbed.astype(numpy.float64) - image))
        rise = float(ascent.score[-1, 0] - ascent.score[0, 0]) / distance if distance else 0.0
        stability = _stability(session, image, own[place], pulled[-1][0], candidate)
        found.append((stability, 1 - _alike(pulled[-1][0], pulled[-1][1]), rise, ascent.perturbed[0]))
        tick()
    # Towards the next photo's class: here, and at that photo.
    photos = [1 - _alike(pulled[i][2], pulled[(i + 1) % len(images)][0]) for i in range(len(images))]
    pairs = zip(found, photos, strict=True)
    return [Seen(stability, targets, photo, rise, end) for (stability, targets, rise, end), photo in pairs]


def judged(candidates: Sequence[Candidate], seen: Sequence[Sequence[Seen]]) -> list[Tried]:
    """The criteria of each candidate, from what `look` returned of it."""
    largest = [max(max(trial.rise for trial in photo), 0.0) for photo in zip(*seen, strict=True)]
    tried = []
    for candidate, photos in zip(candidates, seen, strict=True):
        gains = [max(photo.rise, 0.0) / most if most else 0.0 for photo, most in zip(photos, largest, strict=True)]
        stability, targets, others = (
            float(numpy.mean([getattr(photo, name) for photo in photos])) for name in ("stability", "targets", "photos")
        )
        tried.append(Tried(candidate, stability, targets, others, float(numpy.mean(gains))))
    return tried


def choose(tried: Sequence[Tried]) -> Tried | None:
    """The trial with the largest product; None where no product is above zero."""
    best = max(tried, key=lambda trial: trial.product)
    return best if best.product > 0 else None


def _stability(session: Session, image: Array, target: int, pullback: Array, candidate: Candidate) -> float:
    """Mean cosine between `pullback`, that at `image`, and those at its versions, where they overlap."""
    height, width = image.shape[1:]
    by = max(1, round(MOVED * min(height, width))) | 1
    moves = [(by, by), (-by, by), (0, 0)]
    versions = numpy.stack([_moved(image, *move) for move in moves[:2]] + [_noisy(session, image)])
    pulled = session.pullback(versions, session.one_hot([target] * len(moves)), candidate.temperature).pullback
    inside = (slice(None), slice(by, height - by), slice(by, width - by))
    back = [numpy.roll(moved, (-down, -right), axis=(1, 2)) for moved, (down, right) in zip(pulled, moves, strict=True)]
    return float(numpy.mean([_alike(pullback[inside], version[inside]) for version in back]))


def _moved(image: Array, down: int, right: int) -> Array:
    """`image` moved, its edge repeated behind it."""
    height, width = image.shape[1:]
    rows = numpy.clip(numpy.arange(height) - down, 0, height - 1)
    columns = numpy.clip(numpy.arange(width) - right, 0, width - 1)
    return image[:, rows][:, :, columns]


def _noisy(session: Session, image: Array) -> Array:
    """`image` with the same noise at every call, in the value range."""
    picture = session.manifest.image
    low, high = picture.range if picture is not None else (-1.0, 1.0)
    noise = numpy.random.default_rng(0).normal(0, NOISE * (high - low), image.shape)
    return numpy.clip(image + noise, low, high).astype(image.dtype)


def _alike(a: Array, b: Array) -> float:
    """The cosine; 0 where it is negative, or undefined since a pullback vanishes."""
    angle = cosine(a, b)
    return max(angle, 0.0) if not math.isnan(angle) else 0.0
