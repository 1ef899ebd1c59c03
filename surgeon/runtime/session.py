"""Run a bundle's ONNX artifacts with numpy and ONNX Runtime: pullbacks, and gradient ascents along them. Torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from surgeon.bundle import units
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Layer, Manifest, Port
from surgeon.bundle.ports import GATES
from surgeon.bundle.scalars import check_scalar, shape_text
from surgeon.bundle.units import Array, Unit
from surgeon.errors import SurgeonError, first_line
from surgeon.runtime import system_info as machines
from surgeon.runtime.batching import BatchSizer
from surgeon.runtime.binding import DeviceSession, HostSession, runner
from surgeon.runtime.input_validation import check_value
from surgeon.runtime.placement import fallback, off_device
from surgeon.runtime.providers import CPU, Device, open_session, require_provider

ExtraInputs = Mapping[str, Array]
"""What a network takes beside its input, by name, one row for each sample."""


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
    """Where an ascent stands after `number` steps; number 0 is the input as it was given."""

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
    each set of shapes, and replayed from then on. Raises SurgeonError for a bundle that is damaged or not there,
    ProviderError for a device that is not there, OptionError for options on the CPU, which takes none; others are known
    to be wrong when an artifact is first run.
    """
    place = Device(device, provider_options or {})
    if threads is not None and threads < 1:
        raise SurgeonError(f"the number of threads is {threads}", "Give 1 or more")
    session = Session(Bundle.open(path), place, threads)
    if device != "cpu":
        require_provider(place)
    return session


class Session:
    """A bundle's artifacts, ready to run; each ONNX file is loaded when it is first needed.

    On the CPU it is loaded for the temperature that is asked for first, which saves some percent of time, and once more
    if another is asked for: for any. What is loaded stays. On a GPU, so does what an ascent has reached, until its end;
    what is returned are copies.
    """

    def __init__(self, bundle: Bundle, device: Device = CPU, threads: int | None = None) -> None:
        self.bundle = bundle
        self.device = device
        self._threads = threads
        self._loaded: dict[tuple[str, float | None], HostSession | DeviceSession] = {}
        self._fixed: dict[str, float | None] = {}  # by artifact, the temperature that its first session has
        self._pieces = BatchSizer(bundle.manifest, threads or machines.cores())

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def off_device(self) -> dict[str, tuple[str, ...]]:
        """By artifact, of those that were run, the nodes that were left to the CPU beside a GPU."""
        left = {name: off_device(self.bundle.file(name), one.session, self.device) for name, one in self._run_so_far()}
        return {name: nodes for name, nodes in left.items() if nodes}

    @property
    def fallback(self) -> dict[str, tuple[str, ...]]:
        """By artifact, of those that were run, the nodes that TensorRT left to CUDA."""
        left = {name: fallback(one.session, self.device) for name, one in self._run_so_far()}
        return {name: nodes for name, nodes in left.items() if nodes}

    def _run_so_far(self) -> list[tuple[str, HostSession | DeviceSession]]:
        return [(name, one) for (name, _), one in self._loaded.items()]

    @property
    def extra_inputs(self) -> tuple[Port, ...]:
        """What the artifacts take beside the input: those of the network's other inputs that the output depends on."""
        names = {port.name for artifact in self.manifest.artifacts.values() for port in artifact.inputs}
        return tuple(port for port in self.manifest.extra_inputs if port.name in names)

    @property
    def classes(self) -> int:
        """K, the number of outputs; raises SurgeonError where the output is not [N, K], or that of a hidden layer."""
        if not self.has_classes:
            layers, named = self._places, "a class with --target, " if self.manifest.labels else ""
            raise SurgeonError(
                f"the output of {self.bundle.path} is no row of classes: {units.described(layers)}",
                f"Name {named}a unit with --unit {units.form(layers)} (from Python at_units), or give the cotangent",
            )
        return self.output_shape[0]

    @property
    def has_classes(self) -> bool:
        """Whether the output is a row of classes, and not the units of layers."""
        own = [layer.kind for layer in self.layers] in ([], ["entry"])  # what the network returns, all or one of it
        shape = self._output_sizes
        return own and len(shape) == 1 and isinstance(shape[0], int)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that take the cotangent, each with its slice of the output; none: the network's own output."""
        return self.manifest.layers

    @property
    def _places(self) -> tuple[Layer, ...]:
        """The layers, an own output being one without a name."""
        return self.layers or (Layer("", "output", self._output_sizes),)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output; raises SurgeonError where it varies with the input's."""
        shape = self._output_sizes
        fixed = tuple(size for size in shape if isinstance(size, int))
        if len(fixed) != len(shape):
            raise SurgeonError(
                f"the output of {self.bundle.path} has no fixed shape ({shape_text(shape)} for one sample)",
                "Give the cotangent itself, from Python",
            )
        return fixed

    @property
    def _output_sizes(self) -> tuple[int | str, ...]:
        """As `output_shape`, with a formula for what varies."""
        ports = [port for artifact in self.manifest.artifacts.values() for port in artifact.outputs]
        return next((port.shape[1:] for port in ports if port.name == "output"), ())

    def output_shape_at(self, input: Array) -> tuple[int, ...]:
        """Shape of one sample's output for `input` [N, C, H, W], from the manifest's formulas of H and W.

        Raises SurgeonError where a formula is not one of sums, products and quotients.
        """
        sizes = [units.size_at(formula, input.shape) for formula in self._output_sizes]
        found = tuple(size for size in sizes if size is not None)
        return found if len(found) == len(sizes) else self.output_shape

    def pullback(
        self,
        input: Array,
        cotangent: Array,
        temperature: float | Sequence[float] | None = None,
        extra_inputs: ExtraInputs | None = None,
    ) -> PullbackResult:
        """Pull `cotangent` (shape of the output) at the network's output back to `input` f32 [N, C, H, W].

        `temperature` is the soft gates' T > 0; None takes the bundle's default. Where the artifacts take one for each
        gate and pool, it may be as many numbers, and a single one is for all. `extra_inputs` are what else the network
        takes, by name. Raises SurgeonError for a wrong shape or dtype, a value that is not finite, or a temperature
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
        """What the gates do at one `input` f32 [1, C, H, W]: the outputs of `gates.onnx`, by name, as the manifest has.

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

        With CUDA graphs it is as many runs of `ascent_step.onnx`, and one more for the last score.
        `cotangent` is one-hot for the objective "logit", a distribution for "cross-entropy", and absent for "energy".
        A negative `step_size` descends; `radius` inf does not project; None takes the bundle's default. `extra_inputs`,
        what else the network takes by name, stay as they are. Raises SurgeonError as `pullback` does, and for steps <
        1, a step size that is not finite, or a radius that is not > 0.
        """
        scalars: dict[str, Any] = {"steps": steps, "step_size": step_size, "radius": radius, "temperature": temperature}
        if self.device.captures:
            # ONNX Runtime captures no loop. An error would have every caller write this instead, who asked for an
            # ascent and for graphs, and the values are the same.
            repeater = [*self.steps(input, cotangent, extra_inputs=extra_inputs, **scalars)]
            score = numpy.stack([step.score for step in repeater])
            return AscentResult(repeater[-1].perturbed, repeater[-1].output, repeater[-2].pullback, score)
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
        """The same ascent by `ascent_step.onnx`, step by step: yields steps + 1 Steps, the first at `input` itself.

        For progress, interruption and pictures of the way; it costs one pullback more than `ascent`.
        """
        count = self.manifest.defaults.steps if steps is None else steps
        check_scalar("steps", count)
        scalars: dict[str, Any] = {"step_size": step_size, "radius": radius, "temperature": temperature}
        name = "ascent_step.onnx"
        artifact, feeds = self._prepared(name, input, cotangent, extra_inputs, origin=input, **scalars)
        here = input
        with contextlib.closing(artifact.iterate(feeds)) as iterate:
            for number in range(count + 1):
                if not numpy.isfinite(here).all():
                    raise SurgeonError(f"step {number} of the ascent led to values that are not finite")
                with self._failing(name, input):
                    beyond, output, pullback = next(iterate)
                yield AscentState(number, here, output, pullback, self.score(output, cotangent))
                here = beyond

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

    def one_hot(self, targets: int | Sequence[int]) -> Array:
        """The cotangent f32 [N, K] with a 1 at each target class; raises SurgeonError for one that does not exist."""
        indices = [targets] if isinstance(targets, int) else list(targets)
        for index in indices:
            self._check_class(index)
        cotangent = numpy.zeros((len(indices), self.classes), numpy.float32)
        cotangent[numpy.arange(len(indices)), indices] = 1
        return cotangent

    def at_units(self, wanted: Unit | Sequence[Unit], shape: tuple[int, ...] | None = None) -> Array:
        """The cotangent, of the output's shape, with a 1 at each sample's unit of the layers that the bundle is cut at.

        A unit is (channel,), which means its sum over all positions, or (channel, position, …), such as (5, 3, 4) for
        channel 5 at y 3, x 4; where there are several layers, the layer's name comes first. Where the size is free,
        `shape` is that of one sample's output (`output_shape_at`). Raises SurgeonError for a unit that does not exist,
        or where the output is classes.
        """
        self._refuse_classes()
        layers, shape = self._places, shape or self.output_shape
        if len(layers) == 1:  # several have no free size
            layers = (dataclasses.replace(layers[0], shape=shape),)
        return units.at([wanted] if isinstance(wanted, tuple) else list(wanted), layers)

    def unit(self, text: str) -> Unit:
        """The unit that `text` names: CHANNEL, or CHANNEL,Y,X, after LAYER: where there are several layers.

        Raises SurgeonError as `at_units` does.
        """
        self._refuse_classes()
        return units.parse(text, self._places)

    def place(self, unit: Unit) -> tuple[str, tuple[int, ...]]:
        """The layer of `unit` ("" for the network's own output), and its channel and position there."""
        layer, place = units.check(unit, self._places)
        return layer.name, place

    def split(self, output: Array) -> dict[str, Array]:
        """Each layer's own output [N, …], by name, of an `output` of the artifacts."""
        return units.split(output, self._places)

    def join(self, cotangents: Mapping[str, Array]) -> Array:
        """The cotangent that the artifacts take, of those at the layers, [N, …] each; layers left out have zeros.

        Raises SurgeonError for a layer that is not there, a wrong shape, or batches that differ.
        """
        return units.join(cotangents, self._places)

    def _refuse_classes(self) -> None:
        if self.has_classes:
            raise SurgeonError(
                f"the output of {self.bundle.path} is classes, not the units of a layer",
                "Name a class with --target (from Python one_hot), or export a bundle with --at LAYER",
            )

    def target(self, text: str) -> int:
        """Index of the class that `text` names: its index, its label, one of a label's names, or a part of one label.

        Where the output has a map for each class, it is the channel. Raises SurgeonError for a name that no label has
        (saying the nearest) or several have, an index out of range, or a bundle without labels.
        """
        wanted = text.strip()
        if wanted.removeprefix("-").isdecimal():
            return self._check_class(int(wanted))
        labels = self.manifest.labels
        if not labels:
            raise SurgeonError(f"the bundle {self.bundle.path} has no class names", "Give the class by its index")
        return units.find_label(wanted, labels)

    def label(self, index: int | Unit) -> str:
        """The class's label, or its index as text where the bundle has no labels; a unit's channel and position."""
        labels = self.manifest.labels
        if isinstance(index, tuple):
            layer, (channel, *place) = self.place(index)
            name = labels[channel] if labels and channel < len(labels) else f"channel {channel}"
            where = f" at {','.join(map(str, place))}" if place else ""
            return f"{layer if len(self.layers) > 1 else ''} {name}{where}".strip()
        return labels[index] if labels and index < len(labels) else str(index)

    def _check_class(self, index: int) -> int:
        channels = self._output_sizes[0]
        classes = channels if self.manifest.labels and isinstance(channels, int) else self.classes
        if not 0 <= index < classes:
            raise SurgeonError(f"there is no class {index}", f"The classes are 0 to {classes - 1}")
        return index

    def _run(
        self, name: str, input: Array, cotangent: Array | None, extra_inputs: ExtraInputs | None, **scalars: Any
    ) -> list[Array]:
        """Check the values against what the artifact takes, run it, and return its outputs."""
        artifact, feeds = self._prepared(name, input, cotangent, extra_inputs, **scalars)
        with self._failing(name, input):
            return artifact.run(feeds)

    def _prepared(
        self, name: str, input: Array, cotangent: Array | None, extra_inputs: ExtraInputs | None, **scalars: Any
    ) -> tuple[HostSession | DeviceSession, dict[str, Array]]:
        """The artifact, loaded, and what it is given, checked against what it takes."""
        self._require_room(input)
        artifact, fixed = self._artifact(name, scalars["temperature"])
        if fixed:
            del scalars["temperature"]
        session = artifact.session
        ports = {port.name: port for port in [*session.get_inputs(), *session.get_overridable_initializers()]}
        required = [port.name for port in session.get_inputs()]
        own = {name: value for name, value in self.manifest.required_scalars.items() if name in required}
        scalars = {**own, **{name: value for name, value in scalars.items() if value is not None}}
        given = {**dict.fromkeys(required), "input": input, **(extra_inputs or {}), "cotangent": cotangent, **scalars}
        feeds = {}
        for key, value in given.items():
            if value is None:
                if key in required:
                    raise SurgeonError(f"{name} needs the input {key!r}", "Give one")
            elif key not in ports:
                raise SurgeonError(f"{name} has no use for {key!r} ({self._recipe()})", "Leave it out")
            else:
                feeds[key] = check_value(key, value, ports[key])
        for key, value in [("cotangent", cotangent), *(extra_inputs or {}).items()]:
            if value is not None and len(value) != len(input):
                raise SurgeonError(
                    f"the {key} is for a batch of {len(value)}, and the input has {len(input)}",
                    "Give one row for each input",
                )
        return artifact, feeds

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
            if any(found is not None and found < 1 for found in sizes):
                size = "x".join(map(str, input.shape[2:]))
                raise SurgeonError(
                    f"nothing is left of an input of {size} at {gate.module or gate.node}", "Give a larger one"
                )

    def _recipe(self) -> str:
        recipe = self.manifest.recipe
        return f"gate {recipe.gate}, pool {recipe.pool}, objective {recipe.objective}"

    def _artifact(self, name: str, temperature: Any) -> tuple[HostSession | DeviceSession, bool]:
        """One artifact, loaded, and whether it is for this `temperature` (None: the default) alone."""
        path, manifest = self.bundle.file(name), self.manifest
        uses_temperature = "temperature" in {port.name for port in manifest.artifacts[name].inputs}
        at = None
        if self.device.name == "cpu" and uses_temperature and manifest.recipe.temperature_input == "scalar":
            given = manifest.defaults.temperature if temperature is None else check_scalar("temperature", temperature)
            wanted = float(numpy.float32(given))  # as artifacts have it
            at = wanted if self._fixed.setdefault(name, wanted) == wanted else None
        if (name, at) not in self._loaded:
            session = open_session(path, self.device, self._threads, temperature=at)
            ports = [*session.get_inputs(), *session.get_overridable_initializers()]
            if at is not None and any(port.name == "temperature" for port in ports):
                self._fixed[name] = at = None  # this one is for any
            self._loaded[name, at] = runner(session, self.device, self._pieces)
        return self._loaded[name, at], at is not None


def softmax(output: Array, axis: int = -1) -> Array:
    """Probabilities over the classes along `axis`, of the same shape."""
    exponentials = numpy.exp(output - output.max(axis=axis, keepdims=True))
    return numpy.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def top(output: Array, count: int = 5) -> list[tuple[int, float]]:
    """The most probable classes of one `output` [K]: index and probability, best first."""
    probabilities = softmax(output.astype(numpy.float64))
    best = numpy.argsort(-probabilities, kind="stable")[:count]
    return [(int(index), float(probabilities[index])) for index in best]
