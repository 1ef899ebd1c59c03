"""A batch in pieces gives what the whole does, and pieces are as large as is of use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import pytest

from surgeon.bundle.manifest import GateSite, Manifest
from surgeon.runtime.batching import BatchSizer, run_in_batches
from surgeon.runtime.session import load
from tests.tiny_bundle import write_tiny

Array = numpy.ndarray[Any, numpy.dtype[Any]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("pieces") / "tiny"
    write_tiny(path)
    return path


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 8])
def test_pieces_give_what_the_whole_does(bundle: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = numpy.random.default_rng(0)
    x, session = random.uniform(-1, 1, (5, 3, 8, 8)).astype(numpy.float32), load(bundle, threads=1)
    cotangent = session.one_hot([0, 1, 2, 3, 4])
    whole = session.pullback(x, cotangent), session.ascent(x, cotangent, steps=3), list(session.steps(x, cotangent))
    seen = []

    def count(loaded: Any, feeds: dict[str, Array], most: int, options: Any) -> list[Array]:
        assert most == at_once
        return run_in_batches(Counted(loaded, seen), feeds, most, options)

    monkeypatch.setattr(BatchSizer, "__call__", lambda *_: at_once)
    monkeypatch.setattr("surgeon.runtime.binding.run_in_batches", count)
    cut = load(bundle, threads=1)
    found = cut.pullback(x, cotangent), cut.ascent(x, cotangent, steps=3), list(cut.steps(x, cotangent))
    for one, other in zip(whole[:2], found[:2], strict=True):
        for expected, value in zip(one, other, strict=True):
            numpy.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for before, after in zip(whole[2], found[2], strict=True):
        numpy.testing.assert_allclose(after.perturbed, before.perturbed, rtol=1e-5, atol=1e-6)
    assert seen == [min(at_once, 5 - start) for start in range(0, 5, at_once)] * (2 + 6)


class Counted:
    """A session that notes how many samples each run has."""

    def __init__(self, session: Any, seen: list[int]) -> None:
        self._session, self._seen = session, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, feeds: dict[str, Array], options: Any = None) -> Any:
        self._seen.append(len(feeds["input"]))
        assert {len(feeds[name]) for name in ("cotangent", "origin") if name in feeds} == {len(feeds["input"])}
        return self._session.run(names, feeds, options)


def test_how_many_at_once(bundle: Path) -> None:
    manifest = load(bundle).manifest
    megabyte = ("N", 4, 256, "W")  # of an input that is 256 wide
    gates = tuple(GateSite(f"g{i}", "", "aten.relu.default", "gate", "soft", megabyte) for i in range(30))
    large = dataclasses.replace(manifest, gates=gates)

    def at_once(described: Manifest, shape: tuple[int, ...], threads: int) -> int:
        return BatchSizer(described, threads)({"input": numpy.broadcast_to(numpy.float32(0), shape)})

    assert at_once(large, (8, 3, 256, 256), 1) == 2  # 30 MB for each of them
    assert at_once(large, (8, 3, 256, 1024), 1) == 1  # one goes alone, however large
    assert at_once(large, (8, 3, 256, 256), 2) == 34
    assert at_once(manifest, (8, 3, 8, 8), 1) > 1000
    assert at_once(dataclasses.replace(manifest, gates=()), (8, 3), 1) > 1000
