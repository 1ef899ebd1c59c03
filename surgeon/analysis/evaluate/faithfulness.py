"""Measures of how faithful an explanation is to its network, each with the paper that defines it.

Torch-free, plain numpy, each for one photo: a photo, an explanation and a change of it are [C, H, W]; a map is [H, W],
one number for each pixel.

Petsiuk, Das, Saenko: RISE, BMVC 2018, arXiv 1806.07421. Yeh, Hsieh, Suggala, Inouye, Ravikumar: On the (In)fidelity and
Sensitivity of Explanations, NeurIPS 2019, arXiv 1901.09392. Sixt, Granz, Landgraf: When Explanations Lie, ICML 2020,
arXiv 1912.09818.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy

from surgeon.bundle.units import Array

# Pixels: 11 x 11 and a sigma of 5, as in RISE's own code, which folds the tails back in and pads with grey instead.
BLUR_RADIUS, BLUR_SIGMA = 5, 5.0

# --- maps


def _sum_of_sizes(explanation: Array, _photo: Array) -> Array:
    return numpy.abs(explanation).sum(axis=-3)


def _largest_size(explanation: Array, _photo: Array) -> Array:
    return numpy.abs(explanation).max(axis=-3)


def _product(explanation: Array, photo: Array) -> Array:
    return (explanation * photo).sum(axis=-3)


MAPS: Mapping[str, Callable[[Array, Array], Array]] = {
    "abs": _sum_of_sizes,
    "max": _largest_size,
    "product": _product,
}
"""How explanations [..., C, H, W] of photos of that shape become maps [..., H, W].

abs: the sum over channels of |g|. max: the largest |g| (Simonyan et al. 2014, section 3.1). product: the sum of x * g,
with its sign: the pixel's contribution in the linear model, counted from x = 0, which is mid-grey in [-1, 1].
"""


# --- insertion and deletion


def exchanged(start: Array, end: Array, map: Array, parts: int) -> Array:
    """`start` turning into `end`, both [C, H, W], by pixels in descending order of `map`: [parts + 1, C, H, W].

    After part k the first round(k * H * W / parts) pixels are those of `end`; of equal pixels the upper left is first.
    Deletion turns the photo into grey, insertion a blurred photo into the photo (Petsiuk et al. 2018, section 4; its
    code exchanges 224 pixels of 224 x 224 at a time: 224 parts).
    """
    order = numpy.argsort(-map.reshape(-1), kind="stable")
    rank = numpy.empty(order.size, numpy.int64)
    rank[order] = numpy.arange(order.size)
    counts = numpy.round(numpy.arange(parts + 1) * order.size / parts)
    taken = rank.reshape(1, 1, *map.shape) < counts[:, None, None, None]
    return numpy.where(taken, end, start)


def area(curve: Array) -> float:
    """The area under `curve` [parts + 1] over [0, 1], by trapezoids (Petsiuk et al. 2018, section 4)."""
    return float((curve.sum() - (curve[0] + curve[-1]) / 2) / (len(curve) - 1))


def blur(photo: Array, radius: int = BLUR_RADIUS, sigma: float = BLUR_SIGMA) -> Array:
    """`photo` [C, H, W] under a Gaussian of `sigma` pixels, cut at `radius`; the edge pixels are repeated beyond it."""
    offsets = numpy.arange(-radius, radius + 1)
    weights = numpy.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    padded = numpy.pad(photo.astype(numpy.float64), ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    for axis in (1, 2):
        padded = numpy.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis) @ weights
    return numpy.asarray(padded, photo.dtype)


# --- infidelity


def infidelity(explanation: Array, changes: Array, drops: Array) -> float:
    """The share of the network's answers to `changes` that a linear `explanation` [C, H, W] leaves unexplained: 0 to 1.

    `changes` [M, C, H, W] are taken from the photo x, and `drops` [M] are f(x) - f(x - change). Yeh et al. 2019,
    definition 2.1: the mean of (<change, explanation> - drop)^2. As there in the experiments, the explanation is scaled
    first by the factor that serves it best, b = sum(<change, explanation> * drop) / sum(<change, explanation>^2), since
    methods differ in scale and nobody reads it. Divided here by the mean of drop^2, which is what an explanation of
    zeros gets, so that photos with large logits do not outvote the others. 0 where nothing drops.
    """
    predicted = numpy.tensordot(changes.astype(numpy.float64), explanation.astype(numpy.float64), axes=3)
    drops = drops.astype(numpy.float64)
    power, size = float(predicted @ predicted), float(drops @ drops)
    if size == 0:
        return 0.0
    scale = float(predicted @ drops) / power if power else 0.0
    return float(numpy.square(scale * predicted - drops).sum()) / size


def squares(photo: Array, grey: Array, count: int, side: int, random: numpy.random.Generator) -> Array:
    """Changes [count, C, H, W] that turn a square of `side` pixels, anywhere inside, into `grey` [C, 1, 1].

    Yeh et al. 2019, section 2, "square removal": their changes of photos.
    """
    height, width = photo.shape[1:]
    changes = numpy.zeros((count, *photo.shape), photo.dtype)
    tops = random.integers(0, height - side + 1, count)
    lefts = random.integers(0, width - side + 1, count)
    for change, top, left in zip(changes, tops, lefts, strict=True):
        inside = (slice(None), slice(top, top + side), slice(left, left + side))
        change[inside] = (photo - grey)[inside]
    return changes


def noise(photo: Array, count: int, sigma: float, random: numpy.random.Generator) -> Array:
    """Changes [count, C, H, W] from a normal distribution of deviation `sigma` (Yeh et al. 2019, section 2)."""
    return random.normal(0, sigma, (count, *photo.shape)).astype(photo.dtype)


# --- sensitivity


def max_sensitivity(explanation: Array, neighbours: Array) -> float:
    """How far the explanations of photos nearby are from that of the photo, at most, in units of the latter's norm.

    Yeh et al. 2019, section 3, by Monte Carlo: the largest |neighbour - explanation| over `neighbours` [M, ...],
    explanations of photos drawn from the cube of half a side r around it; divided by |explanation|, as their code does.
    """
    flat = (neighbours - explanation).reshape(len(neighbours), -1).astype(numpy.float64)
    farthest = float(numpy.linalg.norm(flat, axis=1).max())
    length = float(numpy.linalg.norm(explanation.astype(numpy.float64)))
    if length == 0:
        return 0.0 if farthest == 0 else float("inf")
    return farthest / length


def class_sensitivity(map: Array, others: Array) -> float:
    """1 - the mean correlation of the class's `map` with the maps `others` [M, H, W] of other classes: 0 to 2.

    0: the map is the same whatever class it is asked for, and explains none. Sixt et al. 2020 compare the maps of the
    class and of a random one in this way, and find that guided backpropagation and its like hardly tell them apart;
    Adebayo et al. 2018 (arXiv 1810.03292) find maps that a network with random weights leaves as they were.
    Correlation over pixels, not the cosine: maps of sizes are positive everywhere, and the cosine of two that have
    nothing in common is 0.64 for Gaussian noise. Noise reaches 1, so that a high value is needed and does not suffice:
    read it beside `max_sensitivity`. A map that is the same everywhere counts as saying the same of all classes.
    """
    maps = (map.astype(numpy.float64), *others.astype(numpy.float64))
    first, *rest = [(values - values.mean()).reshape(-1) for values in maps]
    correlations = []
    for other in rest:
        scale = float(numpy.linalg.norm(first)) * float(numpy.linalg.norm(other))
        correlations.append(float(first @ other) / scale if scale else 1.0)
    return 1 - sum(correlations) / len(correlations)
