"""Each measure against a slow account of its paper, and against what can be worked out on linear networks."""

from __future__ import annotations

import itertools

import numpy
import pytest

from surgeon.analysis.evaluate.evaluation import rank_methods
from surgeon.analysis.evaluate.explanations import Method, random, smoothgrad
from surgeon.analysis.evaluate.faithfulness import (
    MAPS,
    area,
    blur,
    class_sensitivity,
    exchanged,
    infidelity,
    max_sensitivity,
    noise,
    squares,
)

SHAPE = (3, 5, 4)


@pytest.fixture
def draw():
    return numpy.random.default_rng(3)


def slow_curve(start, end, map, parts, network):
    """Pixel by pixel, from Petsiuk et al.: the network's answers as `end` comes in, most important first."""
    pixels = sorted((-map[y, x], y, x) for y in range(map.shape[0]) for x in range(map.shape[1]))
    answers = []
    for part in range(parts + 1):
        here = start.copy()
        for _, y, x in pixels[: round(part * len(pixels) / parts)]:
            here[:, y, x] = end[:, y, x]
        answers.append(network(here))
    return answers


@pytest.mark.parametrize("parts", [1, 4, 7, 20])
def test_curves_are_those_of_the_slow_account(draw, parts):
    start, end, weights = draw.normal(size=(3, *SHAPE))
    map = draw.integers(0, 6, SHAPE[1:]).astype(float)  # with ties

    def network(photo):
        return float(numpy.tanh((weights * photo).sum()))

    found = numpy.array([network(photo) for photo in exchanged(start, end, map, parts)])
    expected = slow_curve(start, end, map, parts, network)
    assert found == pytest.approx(expected)
    slow = sum((a + b) / 2 / parts for a, b in itertools.pairwise(expected))
    assert area(found) == pytest.approx(slow)


def test_areas_of_a_linear_network_that_knows_its_pixels():
    """f = the sum over pixels of w x: deletion by the true map leaves the sorted rest, the least of any order."""
    gives = numpy.array([[8.0, 1.0], [4.0, 2.0]])
    photo, nothing = numpy.ones((1, 2, 2)), numpy.zeros((1, 2, 2))

    def deletion(map):
        return area((exchanged(photo, nothing, map, 4) * gives).sum(axis=(1, 2, 3)))

    def insertion(map):
        return area((exchanged(nothing, photo, map, 4) * gives).sum(axis=(1, 2, 3)))

    assert deletion(gives) == pytest.approx((15 / 2 + 7 + 3 + 1 + 0) / 4)
    assert insertion(gives) == pytest.approx((0 + 8 + 12 + 14 + 15 / 2) / 4)
    assert deletion(gives) + insertion(gives) == pytest.approx(15)
    assert deletion(-gives) == pytest.approx((15 / 2 + 14 + 12 + 8) / 4)
    assert area(numpy.full(9, 0.25)) == 0.25


def test_blur_is_the_convolution_of_its_kernel(draw):
    photo = draw.normal(size=(2, 9, 7))
    weights = numpy.exp([[-(y * y + x * x) / 2 / 1.5**2 for x in range(-2, 3)] for y in range(-2, 3)])
    weights /= weights.sum()
    expected = numpy.zeros_like(photo)
    for y in range(9):
        for x in range(7):
            for down in range(-2, 3):
                for right in range(-2, 3):
                    there = photo[:, min(max(y + down, 0), 8), min(max(x + right, 0), 6)]
                    expected[:, y, x] += weights[down + 2, right + 2] * there
    assert blur(photo, 2, 1.5) == pytest.approx(expected)
    grey = numpy.full((3, 8, 8), 0.3, numpy.float32)
    assert blur(grey) == pytest.approx(grey) and blur(grey).dtype == numpy.float32


def test_infidelity_of_a_linear_networks_gradient_is_nothing_at_any_scale(draw):
    weights, photo = draw.normal(size=(2, *SHAPE))
    for changes in (noise(photo, 20, 0.3, draw), squares(photo, numpy.zeros((3, 1, 1)), 20, 2, draw)):
        drops = numpy.array([(weights * photo).sum() - (weights * (photo - change)).sum() for change in changes])
        assert infidelity(weights, changes, drops) == pytest.approx(0, abs=1e-20)
        assert infidelity(-1e-6 * weights, changes, drops) == pytest.approx(0, abs=1e-20)
        assert infidelity(0 * weights, changes, drops) == pytest.approx(1)
        assert 0 < infidelity(draw.normal(size=SHAPE), changes, drops) <= 1


def test_infidelity_is_what_the_best_scale_leaves(draw):
    """Yeh et al., definition 2.1, term by term, the scale found by a solver of least squares."""
    explanation, changes, drops = draw.normal(size=SHAPE), draw.normal(size=(30, *SHAPE)), draw.normal(size=30)
    said = numpy.array([sum(change.flat[i] * explanation.flat[i] for i in range(change.size)) for change in changes])
    scale = numpy.linalg.lstsq(said[:, None], drops, rcond=None)[0][0]
    expected = numpy.mean((scale * said - drops) ** 2) / numpy.mean(drops**2)
    assert infidelity(explanation, changes, drops) == pytest.approx(expected)
    assert all(expected <= numpy.mean((b * said - drops) ** 2) / numpy.mean(drops**2) for b in (0, scale - 1e-3, 1))
    assert infidelity(explanation, changes, 0 * drops) == 0


def test_infidelity_of_a_square(draw):
    """f = |x|^2 / 2 has the gradient x; a change of -2x brings back the same f, and the gradient foretells -2|x|^2."""
    photo = draw.normal(size=SHAPE)
    changes = numpy.stack([2 * photo, photo])
    drops = numpy.array([0, (photo**2).sum() / 2])
    # said = (2, 1) |x|^2, drops = (0, 1/2) |x|^2: the best scale is 1/10, what is left 1/25 + 4/25 of 1/4
    assert infidelity(photo, changes, drops) == pytest.approx(0.8)


def test_squares_turn_one_square_grey_and_leave_the_rest(draw):
    photo, grey = draw.normal(size=(3, 6, 8)), numpy.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    places = set()
    for change in squares(photo, grey, 200, 3, draw):
        after = photo - change
        there = numpy.isclose(after, grey).all(axis=0)
        rows, columns = numpy.nonzero(there.any(axis=1))[0], numpy.nonzero(there.any(axis=0))[0]
        assert there.sum() == 9 and (len(rows), len(columns)) == (3, 3)
        assert (after[:, ~there] == photo[:, ~there]).all()
        places.add((int(rows[0]), int(columns[0])))
    assert places == {(y, x) for y in range(4) for x in range(6)}


def test_max_sensitivity_is_the_farthest_of_all(draw):
    map, around = draw.normal(size=SHAPE[1:]), draw.normal(size=(6, *SHAPE[1:]))
    farthest = 0.0
    for other in around:
        farthest = max(farthest, sum((other[y, x] - map[y, x]) ** 2 for y in range(5) for x in range(4)) ** 0.5)
    expected = farthest / sum(value**2 for value in map.flat) ** 0.5
    assert max_sensitivity(map, around) == pytest.approx(expected)
    assert max_sensitivity(5 * map, 5 * around) == pytest.approx(expected)
    assert max_sensitivity(map, numpy.stack([map, map])) == 0  # as of a linear network's gradient
    assert max_sensitivity(map, numpy.stack([map, 3 * map])) == pytest.approx(2)
    assert max_sensitivity(0 * map, numpy.stack([0 * map])) == 0
    assert max_sensitivity(0 * map, numpy.stack([map])) == float("inf")


def test_class_sensitivity_is_one_less_the_correlation(draw):
    map, extra_inputs = draw.normal(size=SHAPE[1:]), draw.normal(size=(3, *SHAPE[1:]))
    slow = [numpy.corrcoef(map.ravel(), other.ravel())[0, 1] for other in extra_inputs]
    assert class_sensitivity(map, extra_inputs) == pytest.approx(1 - sum(slow) / 3)
    assert class_sensitivity(map, numpy.stack([2 * map + 7])) == pytest.approx(0)
    assert class_sensitivity(map, numpy.stack([-map])) == pytest.approx(2)
    assert class_sensitivity(map, numpy.stack([0 * map])) == 0
    large = draw.random((300, 300)), draw.random((1, 300, 300))
    assert class_sensitivity(*large) == pytest.approx(1, abs=0.02)


def test_maps():
    explanation = numpy.array([[[1.0, -2]], [[3, 4]], [[-5, 0]]])
    photo = numpy.array([[[1.0, 1]], [[0, -1]], [[1, 1]]])
    assert MAPS["abs"](explanation, photo).tolist() == [[9, 6]]
    assert MAPS["max"](explanation, photo).tolist() == [[5, 4]]
    assert MAPS["product"](explanation, photo).tolist() == [[-4, -6]]
    assert {made(numpy.stack([explanation] * 4), photo).shape for made in MAPS.values()} == {(4, 1, 2)}


def test_smoothgrad_is_the_mean_over_noisy_photos(draw):
    photos = draw.normal(size=(2, *SHAPE)).astype(numpy.float32)
    calls = []

    def explain(given, classes):
        calls.append(list(classes))
        return given**3 * numpy.reshape(classes, (-1, 1, 1, 1))

    found = smoothgrad("s", Method("m", explain), 6, 0.2, seed=5).explain(photos, [1, 4])
    drawn = numpy.random.default_rng(5).standard_normal((6, *SHAPE), numpy.float32)
    for photo, wanted, mean in zip(photos, [1, 4], found, strict=True):
        slow = [wanted * (photo + 0.2 * (photo.max() - photo.min()) * one) ** 3 for one in drawn]
        assert mean == pytest.approx(sum(slow) / 6, rel=1e-4, abs=1e-5)
    assert calls == [[1] * 6, [4] * 6]
    constant = Method("m", lambda given, classes: numpy.ones_like(given))
    assert (smoothgrad("s", constant, 6, 0.2, 0).explain(photos, [0, 0]) == 1).all()
    assert smoothgrad("s", constant, 6, 0.2, 0).passes == 6
    noisy = random("r", 1).explain(photos, [0, 0])
    assert noisy.shape == photos.shape and (noisy == random("r", 1).explain(photos, [0, 0])).all()


def test_standings_compare_photo_by_photo():
    values = {"a": [0.1, 0.5, 0.9], "b": [0.2, 0.6, 1.0], "c": [0.9, 0.1, 0.55], "noise": [2, 2, 2]}
    found = rank_methods(values, more=True, controls=["noise"])
    assert found["b"].verdict == "best" and found["b"].mean == pytest.approx(0.6)
    assert found["b"].error == pytest.approx(numpy.std([0.2, 0.6, 1.0], ddof=1) / 3**0.5)
    assert found["a"].verdict == ""  # nearer than c, and behind on every photo
    assert found["c"].verdict == "close" and found["noise"].verdict == ""
    assert rank_methods(values, more=False)["a"].verdict == "best"
    alone = rank_methods({"a": [1.0], "b": [2.0]}, more=False)
    assert (alone["a"].verdict, alone["a"].error, alone["b"].verdict) == ("best", None, "")
