"""Run a bundle's ONNX artifacts with numpy and ONNX Runtime: pullbacks, and gradient ascents along them. Torch-free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from surgeon.bundle import units
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Port
from surgeon.bundle.ports import GATES
from surgeon.bundle.scalars import check_scalar
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError, first_line
from surgeon.runtime.binding import DeviceSession, HostSession
from surgeon.runtime.input_validation import checked_feeds
from surgeon.runtime.loading import FORWARD, LoadedArtifacts
from surgeon.runtime.output_units import OutputUnits, softmax
from surgeon.runtime.providers import CPU, Device, require_provider

STEP = "ascent_step.onnx"

ExtraInputs = Mapping[str, Array]
"""The network's inputs beside the one that is pulled back to, by name, one row for each sample."""


class PullbackResult(NamedTuple):
    """`output` f32 [N, K] of the network, and the cotangent's `pullback`, of the shape of the input."""

    output: Array
    pullback: Array


class AscentResult(NamedTuple):
    """The `perturbed` input, the network's `output` there, the last `pullback`, and `score` f32 [steps + 1, N]."""

    perturbed: Array
    output: Array
    pullback: Array
    score: Array


@dataclass(frozen=True)
class AscentState:
    """An ascent after `number` steps; number 0 is the input as it was given."""

    number: int
    perturbed: Array  # shape of the input
    output: Array  # the network's, at `perturbed`
    pullback: Array  # at `perturbed`: the direction of the next step
    score: Array  # [N], the objective's value at `perturbed`


def load(
    path: str | Path,
    device: str = "cpu",
    threads: int | None = None,
    provider_options: Mapping[str, Any] | None = None,
) -> Session:
    """Open the bundle in folder `path` for `device` with `threads` threads (None: all cores).

    The device is "cpu", "cuda" or "tensorrt". `provider_options` go to ONNX Runtime's provider for it on top of
    surgeon's own, which are {"use_tf32": "0"} for CUDA; with {"enable_cuda_graph": "1"}, a run is captured once for
    each set of shapes, and replayed from then on. Raises SurgeonError for a bundle that is damaged or missing,
    ProviderError for a device that is missing, OptionError for options on the CPU, which takes none. A provider refuses
    an option that it does not know when an artifact is first run.
    """
    place = Device(device, provider_options or {})
    if threads is not None and threads < 1:
        raise SurgeonError(f"the number of threads is {threads}", "Give 1 or more")
    session = Session(Bundle.open(path), place, threads)
    if device != "cpu":
        require_provider(place)
    return session


class Session(OutputUnits):
    """A bundle's artifacts, ready to run; each ONNX file is loaded when it is first needed, and stays loaded.

    On a GPU the state of an ascent stays on the device until its end; returned arrays are copies.
    """

    def __init__(self, bundle: Bundle, device: Device = CPU, threads: int | None = None) -> None:
        super().__init__(bundle)
        self.device = device
        self.loaded = LoadedArtifacts(bundle, device, threads)

    @property
    def off_device(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each artifact, of those that were run, that were left to the CPU beside a GPU."""
        return self.loaded.off_device()

    @property
    def fallback(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each artifact, of those that were run, that TensorRT left to CUDA."""
        return self.loaded.fallback()

    @property
    def extra_inputs(self) -> tuple[Port, ...]:
        """The network's other inputs that the output depends on: the artifacts take them too."""
        names = {port.name for artifact in self.manifest.artifacts.values() for port in artifact.inputs}
        return tuple(port for port in self.manifest.extra_inputs if port.name in names)

    def output(self, input: Array, extra_inputs: ExtraInputs | None = None) -> Array:
        """The network's own output [N, …] for `input` f32 [N, C, H, W], by a forward pass alone.

        It is the part of `pullback.onnx` that computes the output, in a session of its own: a fraction of a pullback's
        time and memory. `extra_inputs` and errors are those of `pullback`.
        """
        self._require_room(input)
        forward = self.loaded.forward()
        feeds = checked_feeds(FORWARD, forward.session, {"input": input, **(extra_inputs or {})}, self._recipe())
        _require_one_batch(input, extra_inputs or {})
        with self._failing(FORWARD, input):
            return forward.run(feeds)[0]

    def pullback(
        self,
        input: Array,
        cotangent: Array,
        temperature: float | Sequence[float] | None = None,
        extra_inputs: ExtraInputs | None = None,
    ) -> PullbackResult:
        """Pull `cotangent` (shape of the output) at the network's output back to `input` f32 [N, C, H, W].

        `temperature` is the soft gates' T > 0; None takes the bundle's default. Where the artifacts take one for each
        gate and pool, it may be as many numbers, and a single one is for all. `extra_inputs` are the network's other
        inputs, by name. Raises SurgeonError for a wrong shape or dtype, a value that is not finite, or a temperature
        where the bundle has no use for one.
        """
        return PullbackResult(*self._run("pullback.onnx", input, cotangent, extra_inputs, temperature=temperature))

    def gates(
        self,
        input: Array,
        cotangent: Array,
        temperature: float | Sequence[float] | None = None,
        extra_inputs: ExtraInputs | None = None,
    ) -> dict[str, Array]:
        """The gates' values at one `input` f32 [1, C, H, W]: the outputs of `gates.onnx`, by their names there.

        The arguments are those of `pullback`. Raises SurgeonError as it does, for more than one sample, and for a
        bundle that was exported without its gates' outputs.
        """
        self.require_gates()
        if len(input) != 1:
            raise SurgeonError(f"{len(input)} samples were given", "Give one: every activation of it is kept")
        values = self._run(GATES, input, cotangent, extra_inputs, temperature=temperature)
        return dict(zip((port.name for port in self.manifest.artifacts[GATES].outputs), values, strict=True))

    def require_gates(self) -> None:
        """Raise SurgeonError unless the bundle was exported with its gates' outputs."""
        if GATES not in self.manifest.artifacts:
            raise SurgeonError(
                f"the bundle {self.bundle.path} does not show its gates: it has no {GATES}",
                f"Export it again: surgeon export {self.manifest.model.source} --gate-outputs -o {self.bundle.path}",
            )

    def ascent(
        self,
        input: Array,
        cotangent: Array | None = None,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        radius: float | None = None,
        temperature: float | Sequence[float] | None = None,
        extra_inputs: ExtraInputs | None = None,
    ) -> AscentResult:
        """Climb `steps` steps from `input` f32 [N, C, H, W] along its pullbacks, in one run of `ascent.onnx`.

        With CUDA graphs it is as many runs of `ascent_step.onnx`, and one more for the last score. `cotangent` is
        one-hot for the objective "logit", a distribution for "cross-entropy", and absent for "energy". A negative
        `step_size` descends; `radius` inf does not project; None takes the bundle's default. `extra_inputs`, by name,
        are passed through unchanged. Raises SurgeonError as `pullback` does, and for steps <
        1, a step size that is not finite, or a radius that is not > 0.
        """
        scalars: dict[str, Any] = {"steps": steps, "step_size": step_size, "radius": radius, "temperature": temperature}
        if self.device.captures:
            # ONNX Runtime captures no loop, and steps give the same values: better than an error, for which every
            # caller would have to write this.
            *_, before, last = states = [*self.steps(input, cotangent, extra_inputs=extra_inputs, **scalars)]
            score = numpy.stack([state.score for state in states])
            return AscentResult(last.perturbed, last.output, before.pullback, score)
        return AscentResult(*self._run("ascent.onnx", input, cotangent, extra_inputs, **scalars))

    def steps(
        self,
        input: Array,
        cotangent: Array | None = None,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        radius: float | None = None,
        temperature: float | Sequence[float] | None = None,
        extra_inputs: ExtraInputs | None = None,
    ) -> Iterator[AscentState]:
        """The same ascent by `ascent_step.onnx`, step by step: yields steps + 1 states, the first at `input` itself.

        For progress, interruption and intermediate pictures; it costs one pullback more than `ascent`.
        """
        count = self.manifest.defaults.steps if steps is None else steps
        check_scalar("steps", count)
        scalars: dict[str, Any] = {"step_size": step_size, "radius": radius, "temperature": temperature}
        session, feeds = self._prepared(STEP, input, cotangent, extra_inputs, origin=input, **scalars)
        perturbed = input
        with contextlib.closing(session.iterate(feeds)) as steps_taken:
            for number in range(count + 1):
                if not numpy.isfinite(perturbed).all():
                    raise SurgeonError(f"step {number} of the ascent led to values that are not finite")
                with self._failing(STEP, input):
                    successor, output, pullback = next(steps_taken)
                yield AscentState(number, perturbed, output, pullback, self.score(output, cotangent))
                perturbed = successor

    def score(self, output: Array, cotangent: Array | None = None) -> Array:
        """The objective's value [N] at an `output` of the network, as an ascent reports it."""
        axes = tuple(range(1, output.ndim))
        objective = self.manifest.recipe.objective
        if objective == "energy":
            return numpy.asarray(0.5 * numpy.square(output).sum(axis=axes))
        if cotangent is None:
            raise SurgeonError(f"the objective {objective!r} needs a cotangent", "Give one, such as `one_hot(targets)`")
        if objective == "cross-entropy":
            output = numpy.log(numpy.maximum(softmax(output, axis=1), numpy.finfo(output.dtype).tiny))
        return numpy.asarray((cotangent * output).sum(axis=axes))

    def _run(
        self, name: str, input: Array, cotangent: Array | None, extra_inputs: ExtraInputs | None, **scalars: Any
    ) -> list[Array]:
        """Check the values against what the artifact takes, run it, and return its outputs."""
        session, feeds = self._prepared(name, input, cotangent, extra_inputs, **scalars)
        with self._failing(name, input):
            return session.run(feeds)

    def _prepared(
        self, name: str, input: Array, cotangent: Array | None, extra_inputs: ExtraInputs | None, **scalars: Any
    ) -> tuple[HostSession | DeviceSession, dict[str, Array]]:
        """The session of an artifact, and its feeds, checked."""
        self._require_room(input)
        bound = self.loaded.session(name, scalars["temperature"])
        required = [port.name for port in bound.session.get_inputs()]
        accepted = [*required, *(port.name for port in bound.session.get_overridable_initializers())]
        if self.loaded.takes_temperature(name) and "temperature" not in accepted:
            del scalars["temperature"]  # the session is specialised to it
        defaults = {key: value for key, value in self.manifest.required_scalars.items() if key in required}
        scalars = {**defaults, **{key: value for key, value in scalars.items() if value is not None}}
        values = {"input": input, **(extra_inputs or {}), "cotangent": cotangent, **scalars}
        feeds = checked_feeds(name, bound.session, values, self._recipe())
        _require_one_batch(input, {**(extra_inputs or {}), "cotangent": cotangent})
        return bound, feeds

    @contextlib.contextmanager
    def _failing(self, name: str, input: Array) -> Iterator[None]:
        """Raise SurgeonError where a run fails."""
        try:
            yield
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise SurgeonError(
                f"{name} does not run on an input of shape {list(input.shape)} ({first_line(error)})",
                "Where height and width are free, give a size that the network takes",
            ) from error

    def _require_room(self, input: Array) -> None:
        """Raise SurgeonError where nothing is left of a small input at a gate: ONNX Runtime ends the process there."""
        if not self.manifest.recipe.dynamic_size or getattr(input, "ndim", 0) != 4:
            return
        for gate in self.manifest.gates:
            sizes = [units.size_at(formula, input.shape) for formula in gate.shape]
            if any(size is not None and size < 1 for size in sizes):
                whole = "x".join(map(str, input.shape[2:]))
                raise SurgeonError(
                    f"nothing is left of an input of {whole} at {gate.module or gate.node}", "Give a larger one"
                )

    def _recipe(self) -> str:
        recipe = self.manifest.recipe
        return f"gate {recipe.gate}, pool {recipe.pool}, objective {recipe.objective}"


def _require_one_batch(input: Array, values: Mapping[str, Array | None]) -> None:
    """Raise SurgeonError where one of `values` has another number of rows than `input`."""
    for name, value in values.items():
        if value is not None and len(value) != len(input):
            raise SurgeonError(
                f"the {name} is for a batch of {len(value)}, and the input has {len(input)}",
                "Give one row for each input",
            )
