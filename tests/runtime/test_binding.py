"""Runs on bound values: on the CPU, where they compute what plain runs do; and CUDA graphs, by their rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from surgeon.errors import SurgeonError
from surgeon.runtime import loading
from surgeon.runtime.binding import UNCAPTURED, DeviceSession, HostSession
from surgeon.runtime.providers import CPU, open_session
from surgeon.runtime.session import Session, load
from tests import cuda_graphs
from tests.cuda_graphs import GPU, Graphs
from tests.tiny_bundle import write_tiny

RANDOM = np.random.default_rng(0)


def bound(session: onnxruntime.InferenceSession, *_: object) -> DeviceSession:
    return DeviceSession(session, "cpu")


def captured(session: onnxruntime.InferenceSession, *_: object) -> DeviceSession:
    return DeviceSession(Graphs(session), "cpu", captures=True)


@pytest.fixture(params=[bound, captured], ids=["bound", "graphs"])
def ways(request: pytest.FixtureRequest, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """A session as it is, and one that runs on bound values; both load the files for any temperature."""
    # At a temperature of its own, the CPU has another graph: so that both have the same, that is never asked for.
    sessions = []
    for way in (lambda session, *_: HostSession(session), request.param):
        monkeypatch.setattr(loading, "bind", way)
        session = load(digits_bundle, threads=1)
        session.loaded._specialised = dict.fromkeys(("pullback.onnx", "ascent_step.onnx", "ascent.onnx"), -1.0)
        session.pullback(*given(session, 1))  # loaded under this way
        session.ascent(*given(session, 1), steps=1)
        list(session.steps(*given(session, 1), steps=1))
        sessions.append(session)
    return tuple(sessions)


def given(session: Session, batch: int) -> tuple[np.ndarray, np.ndarray]:
    input = RANDOM.uniform(-1, 1, (batch, 3, 32, 32)).astype(np.float32)
    return input, session.one_hot([*RANDOM.integers(0, session.classes, batch).tolist()])


def equal(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def values(states: Iterator) -> list[np.ndarray]:
    return [value for state in states for value in (state.perturbed, state.output, state.pullback, state.score)]


# Twice each, and in another order, so that buffers that were kept are used again.
BATCHES = (1, 3, 1, 2, 3, 3)
TEMPERATURES = (None, 0.3, 2.0, 0.3, None, 0.7)


def test_pullbacks_are_the_plain_ones(ways: tuple[Session, Session]) -> None:
    plain, other = ways
    for batch, temperature in itertools.product(BATCHES, TEMPERATURES):
        input, cotangent = given(plain, batch)
        equal(other.pullback(input, cotangent, temperature), plain.pullback(input, cotangent, temperature))
        equal([other.output(input)], [plain.output(input)])


def test_ascents_are_the_plain_ones(ways: tuple[Session, Session]) -> None:
    plain, other = ways
    for batch, steps, size in zip(BATCHES, (1, 4, 2, 1, 4, 5), (None, 3.0, -2.0, 3.0, 1.0, 3.0), strict=True):
        input, cotangent = given(plain, batch)
        settings = {"steps": steps, "step_size": size, "radius": 5.0, "temperature": 0.3 * steps}
        equal(other.ascent(input, cotangent, **settings), plain.ascent(input, cotangent, **settings))


def test_steps_are_the_plain_ones(ways: tuple[Session, Session]) -> None:
    plain, other = ways
    for batch, steps, size in zip(BATCHES, (1, 4, 3, 2, 5, 4), (None, 3.0, -2.0, 3.0, 1.0, 3.0), strict=True):
        input, cotangent = given(plain, batch)
        settings = {"steps": steps, "step_size": size, "radius": 2.0 * steps, "temperature": 0.2 * batch}
        found = values(other.steps(input, cotangent, **settings))
        equal(found, values(plain.steps(input, cotangent, **settings)))


def test_walks_at_the_same_time_stay_apart(ways: tuple[Session, Session]) -> None:
    plain, other = ways
    photos = [given(plain, 2) for _ in range(2)]
    walks = zip(*(other.steps(*photo, steps=4) for photo in photos), strict=True)
    found = [*zip(*walks, strict=True)]
    for states, photo in zip(found, photos, strict=True):
        equal(values(states), values(plain.steps(*photo, steps=4)))


def test_what_was_given_and_returned_is_left_alone(ways: tuple[Session, Session]) -> None:
    _, other = ways
    input, cotangent = given(other, 2)
    before = input.copy(), cotangent.copy()
    first = other.pullback(input, cotangent)
    kept = [value.copy() for value in first]
    equal((input, cotangent), before)
    other.pullback(*given(other, 2))
    equal(first, kept)
    other.pullback(np.asfortranarray(input), cotangent)
    equal(other.pullback(np.asfortranarray(input), cotangent), kept)


def test_a_walk_that_is_left_gives_its_buffers_back(ways: tuple[Session, Session]) -> None:
    plain, other = ways
    input, cotangent = given(plain, 2)
    for _ in range(3):
        ascent = other.steps(input, cotangent, steps=5)
        next(ascent), next(ascent)
        ascent.close()
    equal(values(other.steps(input, cotangent)), values(plain.steps(input, cotangent)))
    (artifact,) = (one for (name, _), one in other.loaded._sessions.items() if name == "ascent_step.onnx")
    assert max(len(free) for free in artifact._free.values()) == 1


def test_the_state_is_never_uploaded_again(digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "bind", bound)
    session = load(digits_bundle)
    uploads, real = [], onnxruntime.OrtValue.update_inplace
    monkeypatch.setattr(
        onnxruntime.OrtValue, "update_inplace", lambda self, value: (uploads.append(value.shape), real(self, value))
    )
    ascent = session.steps(*given(session, 2), steps=6, radius=3.0)
    next(ascent)
    assert sorted(uploads) == [(), (2, 3, 32, 32), (2, 3, 32, 32), (2, 10)]
    assert len([*ascent]) == 6
    assert len(uploads) == 4


def test_each_set_of_addresses_has_a_graph_of_its_own(digits_bundle: Path) -> None:
    session = Graphs(open_session(digits_bundle / "ascent_step.onnx", CPU, 1, tuning=False))
    loaded = DeviceSession(session, "cpu", captures=True)
    for batch in (1, 2, 1):
        image = RANDOM.uniform(-1, 1, (batch, 3, 32, 32)).astype(np.float32)
        feeds = {"input": image, "origin": image, "cotangent": np.eye(batch, 10, dtype=np.float32)}
        for _ in itertools.islice(loaded.iterate(feeds), 4):
            pass
    # There and back again; the first run at new addresses makes room for its outputs, and is not captured.
    assert session.ids == [UNCAPTURED, 2, 1, 2, UNCAPTURED, 4, 3, 4, 1, 2, 1, 2]


def test_an_ascent_with_graphs_is_the_loop_s(digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cuda_graphs.pretend(monkeypatch)
    plain, other = load(digits_bundle, GPU), load(digits_bundle, GPU, provider_options={"enable_cuda_graph": True})
    for steps in (1, 4, 4):
        input, cotangent = given(plain, 3)
        settings = {"steps": steps, "step_size": 3.0, "temperature": 0.2 * steps}
        found, expected = (session.ascent(input, cotangent, **settings) for session in (other, plain))
        for one, wanted in zip(found, expected, strict=True):
            assert one.shape == wanted.shape
            np.testing.assert_allclose(one, wanted, rtol=2e-4, atol=2e-4)
    assert [name for name, _ in other.loaded._sessions] == ["ascent_step.onnx"]
    assert [len(session.captured) for session in made] == [2]


def test_timed_calls_run_on_what_is_there(digits_bundle: Path) -> None:
    step = DeviceSession(open_session(digits_bundle / "ascent_step.onnx", CPU, 1, tuning=False), "cpu")
    image = RANDOM.uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    feeds = {"input": image, "origin": image, "cotangent": np.eye(1, 10, dtype=np.float32)}
    next_step, same_step = step.timed_step(feeds), step.timed_run(feeds)
    for _ in range(3):
        next_step()
        same_step()
    assert not step._free


def test_infinite_values_on_the_way_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = load(write_tiny(tmp_path / "tiny"))
    input = RANDOM.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)
    real = HostSession.run
    monkeypatch.setattr(HostSession, "run", lambda self, feeds: [value * np.nan for value in real(self, feeds)])
    with pytest.raises(SurgeonError, match="step 1 of the ascent led to values that are not finite"):
        list(session.steps(input, session.one_hot(0)))
