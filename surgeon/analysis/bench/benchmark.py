"""Times of a bundle's artifacts and of baselines, measured in turn in one process.

A pullback does the forward's multiply-adds twice, so twice the plain forward in the same runtime is its floor; every
ratio here is to that. The candidates take turns, A B C A B C, so that a machine that slows down slows all of them, and
ratios are taken within a turn. torch is imported only where a baseline needs it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from surgeon.analysis.bench import BASELINES
from surgeon.analysis.bench.candidates import Candidate, LoadedArtifact, Unavailable
from surgeon.analysis.bench.profiling import Profile, profile
from surgeon.bundle.folder import Bundle
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError, collect_until_interrupt
from surgeon.runtime import system_info as machines
from surgeon.runtime.batching import BatchSizer
from surgeon.runtime.providers import Device
from surgeon.runtime.session import load
from surgeon.runtime.system_info import Machine

if TYPE_CHECKING:
    from surgeon.analysis.bench.baselines import Baselines

PAUSE = 0.1
"""Seconds to wait before each measurement: ONNX Runtime's threads spin for more work for 50 ms after a run."""


Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of the work that is done, from 0 to 1."""


@dataclass(frozen=True)
class Timing:
    """One candidate at one batch size: seconds per pass in each turn."""

    name: str
    seconds: tuple[float, ...]
    ratios: tuple[float, ...] | None  # to 2 x forward of the same turn; None where forward was not timed
    peak: int | None = None  # most bytes of memory, on the CPU; None where not measured

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the turns was faster than the first, a quarter slower than the second."""
        return quartiles(self.seconds)

    @property
    def ratio(self) -> float | None:
        return None if self.ratios is None else statistics.median(self.ratios)

    @property
    def ratio_quartiles(self) -> tuple[float, float] | None:
        return None if self.ratios is None else quartiles(self.ratios)


@dataclass(frozen=True)
class Round:
    """All candidates at one batch size; `skipped` maps each that could not take part to the reason."""

    batch: int
    timings: tuple[Timing, ...]
    skipped: dict[str, str]
    profile: Profile | None = None  # of the pullback, where it was asked for


@dataclass(frozen=True)
class Benchmark:
    """What was measured, on what, and how."""

    bundle: str
    model: str
    gate: str
    pool: str
    machine: Machine
    steps: int  # of each ascent
    repeats: int
    warm_up: int
    rounds: tuple[Round, ...]
    off_device: dict[str, tuple[str, ...]]  # by artifact, the nodes that run on the CPU beside a GPU
    fallback: dict[str, tuple[str, ...]]  # by artifact, the nodes that TensorRT left to CUDA
    provider_options: dict[str, str]  # of ONNX Runtime's provider
    interrupted: bool  # by Ctrl-C: turns are missing, or whole rounds

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values: seconds per pass (of an ascent, per step), and ratios to 2 x forward."""
        plain = dataclasses.asdict(self)
        for round, entry in zip(self.rounds, plain["rounds"], strict=True):
            entry["timings"] = [_timing_json(timing) for timing in round.timings]
        return plain


def benchmark(
    bundle: str | Path,
    *,
    against: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    device: str = "cpu",
    provider_options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    repeats: int = 15,
    warm_up: int = 2,
    profiled: bool = False,
    source: str | None = None,
    weights: str | None = None,
    progress: Progress = lambda doing, share: None,
) -> Benchmark:
    """Time `pullback` and `ascent` (per step) of the bundle against the baselines `against`, a choice of BASELINES.

    On a GPU `steps`, an ascent by single steps, takes part too, and with CUDA graphs it replaces the ascent; every ONNX
    Runtime session gets the `provider_options`. An ascent's last forward pass counts as half a step. `threads` None
    uses every core that the process may use, for PyTorch and ONNX Runtime alike; `steps` None is the bundle's default;
    `profiled` adds a profile of the pullback. Baselines need torch and the network itself: `source` and `weights`
    replace what the manifest names. Ctrl-C keeps the turns that are done, if any is. Raises SurgeonError for a baseline
    that is unknown, needs what is not installed, or does not run; VerificationError where a baseline computes something
    else; OptionError for an option that is not taken; ProviderError for a device that is not there.
    """
    _require_valid(against, batches, repeats, steps)
    session = load(bundle, device, threads, provider_options)
    manifest, place = session.bundle.manifest, session.device
    threads = threads or machines.cores()
    plan = _Measurement(
        artifacts=_Artifacts.open(session.bundle, place, threads),
        steps=manifest.defaults.steps if steps is None else steps,
        repeats=repeats,
        warm_up=warm_up,
    )
    inputs = [feeds(session.bundle, batch) for batch in batches]
    profiler = functools.partial(profile, session.bundle, device=place, threads=threads)
    busy = machines.load_average()
    with ExitStack() as stack:
        baselines = None
        if against:
            from surgeon.analysis.bench.baselines import Baselines

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="surgeon-bench-")))
            progress("the network itself", 0)
            baselines = stack.enter_context(Baselines(manifest, against, folder, place, threads, source, weights))
        rounds, interrupted = _rounds(plan, baselines, inputs, profiler if profiled else None, progress)
    return Benchmark(
        bundle=str(bundle),
        model=manifest.model.name,
        gate=manifest.recipe.gate,
        pool=manifest.recipe.pool,
        machine=machines.describe(device, threads, busy),
        steps=plan.steps,
        repeats=repeats,
        warm_up=warm_up,
        rounds=tuple(rounds),
        off_device={name: artifact.off_device for name, artifact in plan.artifacts.loaded.items()},
        fallback={name: artifact.fallback for name, artifact in plan.artifacts.loaded.items()},
        provider_options=place.options,
        interrupted=interrupted,
    )


def _require_valid(against: Sequence[str], batches: Sequence[int], repeats: int, steps: int | None) -> None:
    """Raise SurgeonError for an unknown baseline, one that needs torch where it is not, or a count below 1."""
    unknown = [name for name in against if name not in BASELINES]
    if unknown:
        raise SurgeonError(f"there is no baseline {unknown[0]!r}", f"Choose from {', '.join(BASELINES)}")
    counts = {"batch": min(batches, default=0), "repeats": repeats, "steps": 1 if steps is None else steps}
    for name, count in counts.items():
        if count < 1:
            raise SurgeonError(f"{name} is {count}", "Give 1 or more")
    if against and not torch_is_installed():
        raise SurgeonError(
            f"timing against {', '.join(against)} needs torch, which is not installed",
            'pip install "surgeon[convert]", or give --against none',
        )


def _part(progress: Progress, prefix: str, place: int, parts: int) -> Progress:
    """`progress` for one of several equal parts of the work."""
    return lambda doing, share: progress(prefix + doing, (place + share) / parts)


def torch_is_installed() -> bool:
    """Whether torch, which every baseline needs, is installed; imports nothing."""
    return importlib.util.find_spec("torch") is not None


def turns(
    candidates: Sequence[Candidate],
    repeats: int,
    warm_up: int,
    *,
    pause: float = PAUSE,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda doing, share: None,
) -> Iterator[dict[str, float]]:
    """Seconds per pass of each candidate, by name, in each of `repeats` turns; `warm_up` turns before do not count."""
    for turn in range(-warm_up, repeats):
        seconds = {}
        share = (turn + warm_up) / (repeats + warm_up)
        for candidate in candidates:
            progress(f"{candidate.name}, " + ("warming up" if turn < 0 else f"turn {turn + 1} of {repeats}"), share)
            time.sleep(pause)
            begin = clock()
            candidate.run()
            seconds[candidate.name] = (clock() - begin) / candidate.passes
        if turn >= 0:
            yield seconds


def timings(turns: Sequence[Mapping[str, float]]) -> list[Timing]:
    """The timings of each candidate over `turns`, with ratios to twice the turn's `forward`, where that was timed."""

    def ratios(name: str) -> tuple[float, ...] | None:
        return tuple(turn[name] / (2 * turn["forward"]) for turn in turns) if "forward" in turns[0] else None

    return [Timing(name, tuple(turn[name] for turn in turns), ratios(name)) for name in turns[0]]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def feeds(bundle: Bundle, batch: int, seed: int = 0) -> dict[str, Array]:
    """An `input` [batch, …] of noise in the bundle's value range, and a one-hot `cotangent` [batch, …]."""
    artifact = bundle.manifest.artifacts.get("pullback.onnx")
    if artifact is None:
        raise SurgeonError(f"the bundle {bundle.path} holds no pullback.onnx", "Export it with --formats onnx")
    image = bundle.manifest.image
    shape: tuple[Any, ...] = artifact.inputs[0].shape[1:]
    if image is not None:
        shape = (image.channels, image.height, image.width)
    outputs: tuple[Any, ...] = artifact.outputs[0].shape[1:]
    if not all(isinstance(size, int) for size in (*shape, *outputs)):
        raise SurgeonError(
            f"the bundle {bundle.path} leaves sizes open, and does not say which to take", "Export it again"
        )
    low, high = image.range if image is not None else (-1.0, 1.0)
    random = numpy.random.default_rng(seed)
    cotangent = numpy.zeros((batch, int(numpy.prod(outputs))), numpy.float32)
    cotangent[numpy.arange(batch), random.integers(0, cotangent.shape[1], batch)] = 1
    values = random.uniform(low, high, (batch, *shape)).astype(artifact.inputs[0].dtype)
    taken = [port for port in artifact.inputs if port in bundle.manifest.extra_inputs]
    extra_inputs = {port.name: numpy.ones((batch, *map(int, port.shape[1:])), port.dtype) for port in taken}
    scalars = {
        name: numpy.array(value, numpy.int64 if isinstance(value, int) else numpy.float32)
        for name, value in bundle.manifest.required_scalars.items()
    }
    return {"input": values, "cotangent": cotangent.reshape(batch, *outputs), **extra_inputs, **scalars}


@dataclass(frozen=True)
class _Artifacts:
    """The bundle's artifacts that take part."""

    loaded: dict[str, LoadedArtifact]
    skipped: dict[str, str]

    @classmethod
    def open(cls, bundle: Bundle, device: Device, threads: int) -> _Artifacts:
        names, skipped = ["pullback.onnx", "ascent.onnx"], {}
        if device.name != "cpu":
            names.append("ascent_step.onnx")
        if device.captures:
            names.remove("ascent.onnx")
            skipped["ascent"] = "it is a loop, and a CUDA graph holds none"
        temperature = bundle.manifest.defaults.temperature
        sizer = BatchSizer(bundle.manifest, threads)
        loaded = {
            name: LoadedArtifact.open(bundle.file(name), device, threads, temperature, sizer)
            for name in names
            if name in bundle.manifest.artifacts
        }
        return cls(loaded, skipped)

    def candidates(self, inputs: dict[str, Array], steps: int) -> list[Candidate]:
        candidates = [self.loaded["pullback.onnx"].candidate("pullback", inputs)]
        if "ascent.onnx" in self.loaded:
            of_ascent = {**inputs, "steps": numpy.array(steps)}
            passes = steps + 0.5  # the last is forward alone
            candidates.append(self.loaded["ascent.onnx"].candidate("ascent", of_ascent, passes))
        if "ascent_step.onnx" in self.loaded:
            of_step = {**inputs, "origin": inputs["input"]}
            candidates.append(self.loaded["ascent_step.onnx"].stepping_candidate("steps", of_step, steps))
        return candidates


@dataclass(frozen=True)
class _Measurement:
    """What is timed at every batch size, and how often."""

    artifacts: _Artifacts
    steps: int
    repeats: int
    warm_up: int


def _rounds(
    plan: _Measurement,
    baselines: Baselines | None,
    inputs: Sequence[dict[str, Array]],
    profiler: Callable[[dict[str, Array]], Profile] | None,
    progress: Progress,
) -> tuple[list[Round], bool]:
    """A round for each of `inputs`, and whether Ctrl-C ended them early."""
    rounds: list[Round] = []
    for feed in inputs:
        report = _part(progress, f"batch {len(feed['input'])}: ", len(rounds), len(inputs))
        round, interrupted = _round(plan, baselines, feed, report, before=len(rounds))
        if round is None:
            return rounds, interrupted
        if profiler is not None and not interrupted:
            report("profiling the pullback", 1)
            round = dataclasses.replace(round, profile=profiler(feed))
        rounds.append(round)
        if interrupted:
            return rounds, True
    return rounds, False


def _round(
    plan: _Measurement, baselines: Baselines | None, inputs: dict[str, Array], progress: Progress, before: int
) -> tuple[Round | None, bool]:
    """Check the baselines' values, then time all candidates at this batch size; also whether Ctrl-C cut it short.

    The round is None where that happened within the first turn and `before` rounds are done; without any,
    KeyboardInterrupt is raised.
    """
    candidates, skipped = plan.artifacts.candidates(inputs, plan.steps), dict(plan.artifacts.skipped)
    if baselines is not None:
        values = plan.artifacts.loaded["pullback.onnx"].values(inputs)
        for name in baselines.names:
            progress(f"{name}: " + ("compiling" if name == "compile" else "checking its values"), 0)
            try:
                candidates.append(baselines.candidate(name, inputs, values["output"], values["pullback"]))
            except Unavailable as error:
                skipped[name] = str(error)
    candidates.sort(key=lambda candidate: candidate.name != "forward")
    timed = turns(candidates, plan.repeats, plan.warm_up, progress=progress)
    done, interrupted = collect_until_interrupt(timed, before)
    if not done:
        return None, interrupted
    results = timings(done)
    if not interrupted:
        progress("memory", 1)
        peaks, interrupted = collect_until_interrupt((candidate.peak() for candidate in candidates), before=len(done))
        results = [dataclasses.replace(timing, peak=peak) for timing, peak in zip_longest(results, peaks)]
    return Round(len(inputs["input"]), tuple(results), skipped), interrupted


def _timing_json(timing: Timing) -> dict[str, Any]:
    """The statistics, and the seconds that they are computed from."""
    return {
        "name": timing.name,
        "median": timing.median,
        "quartiles": timing.quartiles,
        "ratio": timing.ratio,
        "ratio_quartiles": timing.ratio_quartiles,
        "peak_bytes": timing.peak,
        "seconds": timing.seconds,
    }
