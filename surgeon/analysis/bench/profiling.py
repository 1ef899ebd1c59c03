"""A pullback's time by operator and by source layer. Torch-free.

ONNX Runtime's profiler times each node that it runs. Nodes that it made itself, by fusing or by moving a tensor into or
out of its blocked layout, are attributed by the name of their result; those without such a name are listed as its own.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from surgeon.bundle.folder import Bundle
from surgeon.bundle.units import Array
from surgeon.runtime.binding import UNCAPTURED, run_options
from surgeon.runtime.providers import CPU, Device, open_session
from surgeon.runtime.tuning import tuned

_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\w+/)+$")  # that ONNX Runtime adds to the name of a node it replaces
_KERNEL = "_kernel_time"
RUNTIME = "(ONNX Runtime)"
"""The layer of nodes that replace none of the artifact's, such as changes of layout."""

NO_MODULE = "(no module)"
"""The layer of nodes that belong to no module: 1/T, and sizes of the input."""


@dataclass(frozen=True)
class Share:
    """Time of the nodes with the same operator, layer or provider."""

    name: str
    nodes: int
    seconds: float  # of one run, all those nodes together


@dataclass(frozen=True)
class Profile:
    """One artifact's time at one batch size, divided in three ways; the largest share comes first."""

    batch: int
    seconds: float  # of one run: the sum over its nodes, without the time between them
    operators: tuple[Share, ...]
    layers: tuple[Share, ...]  # "layer1.0.conv1, backward"
    providers: tuple[Share, ...]


@dataclass(frozen=True)
class _Timed:
    """One node that ONNX Runtime ran, with the time of one run of it."""

    name: str
    operator: str
    provider: str
    seconds: float


def profile(
    bundle: Bundle, feeds: Mapping[str, Array], device: Device = CPU, threads: int | None = None, repeats: int = 5
) -> Profile:
    """Run `pullback.onnx` of `bundle` on `feeds` once to warm up and `repeats` times under ONNX Runtime's profiler.

    Raises what `surgeon.runtime.providers.open_session` raises. On a GPU the times are those of starting each kernel
    and not of the kernel itself, so only the list of providers is informative.
    """
    path = bundle.file("pullback.onnx")
    with tempfile.TemporaryDirectory(prefix="surgeon-profile-") as folder:
        temperature = bundle.manifest.defaults.temperature
        session = open_session(path, device, threads, temperature=temperature, trace=Path(folder) / "trace")
        for _ in range(1 + repeats):
            session.run(None, dict(feeds), run_options(UNCAPTURED))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = _timed(events, repeats)
    model = tuned(path, temperature, threads) if device.name == "cpu" else None
    owners = _owners(model or onnx.load(path, load_external_data=False))
    return Profile(
        batch=len(feeds["input"]),
        seconds=sum(node.seconds for node in nodes),
        operators=_shares((node.operator, node.seconds) for node in nodes),
        layers=_shares((owners.get(_SUFFIX.sub("", node.name), RUNTIME), node.seconds) for node in nodes),
        providers=_shares((node.provider, node.seconds) for node in nodes),
    )


def _timed(events: Iterable[dict[str, Any]], repeats: int) -> list[_Timed]:
    """Each node with the median of its runs, the first of which does not count."""
    runs: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            facts = event["args"]
            key = (event["name"].removesuffix(_KERNEL), facts["op_name"], facts.get("provider", ""))
            runs.setdefault(key, []).append(1e-6 * event["dur"])
    return [_Timed(*key, statistics.median(seconds[-repeats:])) for key, seconds in runs.items()]


def _owners(model: onnx.ModelProto) -> dict[str, str]:
    """The source layer of each node and of each of its results, and whether it belongs to the forward pass."""
    owners = {}
    for node in model.graph.node:
        facts = {prop.key: prop.value for prop in node.metadata_props}
        layer, role = facts.get("surgeon.module") or NO_MODULE, facts.get("surgeon.role", "")
        for name in (node.name, *node.output):
            owners[name] = f"{layer}, {role}" if role else layer
    return owners


def _shares(timed: Iterable[tuple[str, float]]) -> tuple[Share, ...]:
    sums: dict[str, tuple[int, float]] = {}
    for name, seconds in timed:
        count, total = sums.get(name, (0, 0.0))
        sums[name] = count + 1, total + seconds
    shares = (Share(name, count, seconds) for name, (count, seconds) in sums.items())
    return tuple(sorted(shares, key=lambda share: -share.seconds))
