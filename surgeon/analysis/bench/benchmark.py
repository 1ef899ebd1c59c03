"""How long a bundle's artifacts take, beside what one would use without them; all in turn, in one process.

A pullback does the forward's multiply-adds twice, so twice the plain forward in the same runtime is its floor, and what
every ratio here is to. The contenders take turns, A B C A B C, so that a machine that slows down slows all of them; the
ratio is taken within each turn. torch is imported only where a contender needs it.
"""

from __future__ import annotations

import dataclasses
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

from surgeon.analysis.bench.candidates import Contender, LoadedArtifact, Unavailable
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
    from surgeon.analysis.bench.baselines import Rivals

BASELINES = ("forward", "eager", "compile")
"""forward: the plain ONNX export; eager: the same gates by PyTorch's autograd; compile: torch.compile of that."""

PAUSE = 0.1
"""Seconds before each measurement: for 50 ms, ONNX Runtime's threads spin for more work, and would be in the way."""


Progress = Callable[[str, float], None]
"""Is told what is done now, and which share of the work is done already, from 0 to 1."""


@dataclass(frozen=True)
class Timing:
    """One contender at one batch size: seconds per pass, one number for each turn."""

    name: str
    seconds: tuple[float, ...]
    ratios: tuple[float, ...] | None  # to 2 x forward of the same turn; None where forward was not timed
    peak: int | None = None  # bytes of memory at the most, on the CPU; None where that was not measured

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
    """All contenders at one batch size; `skipped` says of each that could not take part why."""

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
    provider_options: dict[str, str]  # all that ONNX Runtime's provider was told
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
    """Time `pullback` and `ascent` (per step) of the bundle against `against`, a choice of OPPONENTS.

    On a GPU `steps`, an ascent by single steps, takes part too, and with CUDA graphs it alone; all that ONNX Runtime
    runs gets the `provider_options`. An ascent's last forward pass counts as half a step. `threads` None takes every
    core that the process may use, for PyTorch and ONNX Runtime alike; `steps` None takes the bundle's default;
    `profiled` adds where the pullback's time goes. Opponents need torch and the network itself: `source` and `weights`
    say where it is, if not where the manifest says. Ctrl-C ends it with the turns that are done, if any is. Raises
    SurgeonError for an opponent that is unknown or needs what is not installed, or where one does not run,
    VerificationError where an opponent computes something else, OptionError for an option that is not taken,
    ProviderError for a device that is not there.
    """
    unknown = [name for name in against if name not in BASELINES]
    if unknown:
        raise SurgeonError(f"there is no opponent {unknown[0]!r}", f"Choose from {', '.join(BASELINES)}")
    for name, value in (
        ("batch", min(batches, default=0)),
        ("repeats", repeats),
        ("steps", 1 if steps is None else steps),
    ):
        if value < 1:
            raise SurgeonError(f"{name} is {value}", "Give 1 or more")
    if against and not torch_is_installed():
        raise SurgeonError(
            f"timing against {', '.join(against)} needs torch, which is not installed",
            'pip install "surgeon[convert]", or give --against none',
        )
    session = load(bundle, device, threads, provider_options)
    opened, place = session.bundle, session.device
    manifest = opened.manifest
    steps = manifest.defaults.steps if steps is None else steps
    threads = threads or machines.cores()
    inputs = [feeds(opened, batch) for batch in batches]
    busy = machines.load_average()
    own = _Own.open(opened, place, threads)
    with ExitStack() as stack:
        baselines = None
        if against:
            from surgeon.analysis.bench.baselines import Rivals

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="surgeon-bench-")))
            progress("the network itself", 0)
            baselines = stack.enter_context(Rivals(manifest, against, folder, place, threads, source, weights))
        rounds: list[Round] = []
        interrupted = False
        for given in inputs:
            tell = _part(progress, f"batch {len(given['input'])}: ", len(rounds), len(inputs))
            found, interrupted = _round(own, baselines, given, steps, repeats, warm_up, tell, before=len(rounds))
            if found is None:
                break
            if profiled and not interrupted:
                tell("profiling the pullback", 1)
                found = dataclasses.replace(found, profile=profile(opened, given, place, threads))
            rounds.append(found)
            if interrupted:
                break
    return Benchmark(
        bundle=str(bundle),
        model=manifest.model.name,
        gate=manifest.recipe.gate,
        pool=manifest.recipe.pool,
        machine=machines.describe(device, threads, busy),
        steps=steps,
        repeats=repeats,
        warm_up=warm_up,
        rounds=tuple(rounds),
        off_device={name: artifact.off_device for name, artifact in own.artifacts.items()},
        fallback={name: artifact.fallback for name, artifact in own.artifacts.items()},
        provider_options=place.options,
        interrupted=interrupted,
    )


def _part(progress: Progress, prefix: str, place: int, parts: int) -> Progress:
    """`progress` of one of several parts of the work, as if that were all."""
    return lambda doing, share: progress(prefix + doing, (place + share) / parts)


def torch_is_installed() -> bool:
    """Whether opponents can be made at all; imports nothing."""
    return importlib.util.find_spec("torch") is not None


def turns(
    candidates: Sequence[Contender],
    repeats: int,
    warm_up: int,
    *,
    pause: float = PAUSE,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda doing, share: None,
) -> Iterator[dict[str, float]]:
    """Seconds per pass of each contender by name, of each of `repeats` turns; `warm_up` turns before do not count."""
    for turn in range(-warm_up, repeats):
        seconds = {}
        share = (turn + warm_up) / (repeats + warm_up)
        for contender in candidates:
            progress(f"{contender.name}, " + ("warming up" if turn < 0 else f"turn {turn + 1} of {repeats}"), share)
            time.sleep(pause)
            begin = clock()
            contender.run()
            seconds[contender.name] = (clock() - begin) / contender.passes
        if turn >= 0:
            yield seconds


def timings(turns: Sequence[Mapping[str, float]]) -> list[Timing]:
    """Of each contender what the `turns` took, and each turn's ratio to twice its `forward`, where there is one."""

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
class _Own:
    """The bundle's own artifacts, loaded."""

    artifacts: dict[str, LoadedArtifact]
    skipped: dict[str, str]

    @classmethod
    def open(cls, bundle: Bundle, device: Device, threads: int) -> _Own:
        names, skipped = ["pullback.onnx", "ascent.onnx"], {}
        if device.name != "cpu":
            names.append("ascent_step.onnx")
        if device.captures:
            names.remove("ascent.onnx")
            skipped["ascent"] = "it is a loop, and a CUDA graph holds none"
        temperature = bundle.manifest.defaults.temperature
        there = [name for name in names if name in bundle.manifest.artifacts]
        at_once = BatchSizer(bundle.manifest, threads)
        opened = {name: LoadedArtifact.open(bundle.file(name), device, threads, temperature, at_once) for name in there}
        return cls(opened, skipped)

    def candidates(self, given: dict[str, Array], steps: int) -> list[Contender]:
        found = [self.artifacts["pullback.onnx"].contender("pullback", given)]
        if "ascent.onnx" in self.artifacts:
            climbing = {**given, "steps": numpy.array(steps)}
            passes = steps + 0.5  # the last is forward alone
            found.append(self.artifacts["ascent.onnx"].contender("ascent", climbing, passes))
        if "ascent_step.onnx" in self.artifacts:
            starting = {**given, "origin": given["input"]}
            found.append(self.artifacts["ascent_step.onnx"].walker("steps", starting, steps))
        return found


def _round(
    own: _Own,
    baselines: Rivals | None,
    given: dict[str, Array],
    steps: int,
    repeats: int,
    warm_up: int,
    progress: Progress,
    before: int,
) -> tuple[Round | None, bool]:
    """Check the opponents' values, then time everyone at this batch size; whether Ctrl-C cut it short.

    None where it did so within the first turn, `before` rounds being there; without any, KeyboardInterrupt is raised.
    """
    candidates, skipped = own.candidates(given, steps), dict(own.skipped)
    if baselines is not None:
        own_values = own.artifacts["pullback.onnx"].values(given)
        output, pullback = own_values["output"], own_values["pullback"]
        for name in baselines.names:
            progress(f"{name}: " + ("compiling" if name == "compile" else "checking its values"), 0)
            try:
                candidates.append(baselines.contender(name, given, output, pullback))
            except Unavailable as error:
                skipped[name] = str(error)
    candidates.sort(key=lambda contender: contender.name != "forward")
    done, interrupted = collect_until_interrupt(turns(candidates, repeats, warm_up, progress=progress), before)
    if not done:
        return None, interrupted
    timed = timings(done)
    if not interrupted:
        progress("memory", 1)
        peaks, interrupted = collect_until_interrupt((contender.peak() for contender in candidates), before=len(done))
        timed = [dataclasses.replace(one, peak=peak) for one, peak in zip_longest(timed, peaks)]
    return Round(len(given["input"]), tuple(timed), skipped), interrupted


def _timing_json(timing: Timing) -> dict[str, Any]:
    """The figures and, for whoever wants other ones, the numbers that they come from."""
    return {
        "name": timing.name,
        "median": timing.median,
        "quartiles": timing.quartiles,
        "ratio": timing.ratio,
        "ratio_quartiles": timing.ratio_quartiles,
        "peak_bytes": timing.peak,
        "seconds": timing.seconds,
    }
