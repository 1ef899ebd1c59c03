"""Split CPU batches so that activations kept for the backward pass fit a memory budget. Torch-free.

A pullback keeps every gate's input until the backward pass returns to it: for each sample, all activations of the
forward pass. Beyond the cache's size, a larger batch saves a single thread nothing and costs it trips to memory.
Several threads share one piece, and need one that is large enough. Samples are independent, so the pieces' results are
those of the whole batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy

from surgeon.bundle import units
from surgeon.bundle.manifest import Manifest
from surgeon.bundle.units import Array

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

Feeds = Mapping[str, Array]
SamplesPerRun = Callable[[Feeds], int]

BATCH = "N"
"""The batch dimension's name in the shapes of artifacts."""

_KEPT_ALONE = 64 * 2**20
_KEPT_BY_EACH = 512 * 2**20
"""Bytes that one piece may keep for its gates: with a single thread, and for each of several threads."""


def whole(feeds: Feeds) -> int:
    """No limit: the whole batch in one run."""
    return sys.maxsize


class BatchSizer:
    """The number of samples that `threads` threads best run together, for the artifacts that `manifest` describes."""

    def __init__(self, manifest: Manifest, threads: int) -> None:
        self._manifest = manifest
        self._allowed = _KEPT_ALONE if threads == 1 else threads * _KEPT_BY_EACH
        self._known: dict[tuple[int, ...], int] = {}  # by a sample's shape

    def __call__(self, feeds: Feeds) -> int:
        """The number, 1 or more, for the `input` [N, …] among `feeds`."""
        shape = feeds["input"].shape[1:]
        if shape not in self._known:
            self._known[shape] = max(1, self._allowed // max(1, self._kept(shape)))
        return self._known[shape]

    def _kept(self, shape: tuple[int, ...]) -> int:
        """Bytes that one sample of this shape keeps for its gates."""
        kept = 0
        for gate in self._manifest.gates:
            sizes = [units.size_at(size, (1, *shape)) for size in gate.shape]
            kept += 4 * math.prod(size for size in sizes if size is not None)
        return kept


def run_in_batches(
    session: InferenceSession, feeds: Feeds, at_once: int, options: RunOptions | None = None
) -> list[Array]:
    """All outputs of `session` for `feeds`, computed for at most `at_once` samples together."""
    ports = [*session.get_inputs(), *session.get_overridable_initializers()]
    batched = [port.name for port in ports if BATCH in port.shape[:1] and port.name in feeds]
    samples = len(feeds[batched[0]]) if batched else 1
    if samples <= at_once:
        return list(session.run(None, dict(feeds), options))
    pieces = []
    for start in range(0, samples, at_once):
        piece = {name: feeds[name][start : start + at_once] for name in batched}
        pieces.append(session.run(None, {**feeds, **piece}, options))
    axes = [list(port.shape).index(BATCH) for port in session.get_outputs()]
    return [numpy.concatenate(parts, axis) for parts, axis in zip(zip(*pieces, strict=True), axes, strict=True)]
