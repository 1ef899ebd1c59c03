"""Cases of verification: unseen inputs for each kind of artifact, and how the oracle computes the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgeon.bundle.manifest import GateSite, Manifest, Recipe
from surgeon.bundle.ports import GATE_GAP, HARD, PRE_ACTIVATION, SOFT
from surgeon.conversion.capture.any_size import other_sizes
from surgeon.conversion.capture.capture import capture
from surgeon.errors import SurgeonError
from surgeon.network.call_patching import without_checkpoints
from surgeon.network.inputs import Example, samples, tensors, with_extra_inputs
from surgeon.network.layers import joined, kinds
from surgeon.network.modules import evaluating
from surgeon.network.weights import varied_input
from surgeon.network.wrapping import Wrapper
from surgeon.verify.oracle.gates import reference_gates
from surgeon.verify.oracle.reference import forward, reference_ascent, reference_pullback, reference_step, sample_norm
from surgeon.verify.oracle.rules import Temperatures

HARD_STEP = 0.05
"""With hard gates, compare with a step size of HARD_STEP × the default: after a full step, one gate flipped by rounding
makes trajectories diverge even for a correct artifact."""

OTHER_TEMPERATURE = 2.3
"""The second temperature is OTHER_TEMPERATURE × the default."""

STEPS = 2

Values = dict[str, Tensor]
Temperature = float | list[float]
"""The value of an artifact's input `temperature`: one number, or one for each gate and pool."""


@dataclass(frozen=True)
class Case:
    """Inputs for one kind of artifact, and a function that computes the outputs by autograd."""

    kind: str  # stem of the artifact's file name: pullback, ascent_step, ascent
    condition: str  # such as "batch 3, T 0.69"
    temperature: float  # the lowest, where gates have their own
    feeds: Values  # a missing input takes the artifact's default
    solve: Callable[[nn.Module, torch.dtype], Values]  # (module, its dtype) -> outputs


def cases(module: nn.Module, manifest: Manifest, seed: int) -> list[Case]:
    """Two pullbacks, one step of an ascent under way, and one ascent; with `gate_outputs`, two cases of gates.onnx."""
    shape = input_shape(manifest)
    generator = torch.Generator().manual_seed(seed)
    low, high = manifest.image.range if manifest.image is not None else (-1.0, 1.0)

    def inputs(batch: int, shape: tuple[int, ...] = shape) -> Values:
        extra_inputs = samples(manifest.extra_inputs, batch, generator)
        names = (port.name for port in manifest.extra_inputs)
        return {
            "input": varied_input(batch, shape, generator, low, high),
            **dict(zip(names, extra_inputs, strict=True)),
        }

    other_shape = _other_shape(module, manifest, shape)
    other = _other_temperature(manifest, generator)

    def output(values: Values) -> Tensor:
        with torch.no_grad(), without_checkpoints(), _extra_inputs(module, manifest, values):
            return forward(module, values["input"], manifest.recipe.at)

    stated = _output_shape(manifest)

    def cotangents(values: Values) -> Tensor:
        size = output(values).shape if stated is None else (len(values["input"]), *stated)
        return torch.randn(size, generator=generator)

    def target(values: Values) -> Tensor:
        return _cotangent(manifest.recipe.objective, output(values), generator)

    stepped, climbed = inputs(2), inputs(2, other_shape)
    listed = [
        _pullback_case(manifest, one := inputs(1), cotangents(one), None),
        _pullback_case(manifest, three := inputs(3, other_shape), cotangents(three), other),
        _step_case(manifest, stepped, inputs(2)["input"], target(stepped), other),
        _ascent_case(manifest, climbed, target(climbed), other),
    ]
    if manifest.recipe.gate_outputs:
        listed.append(_gates_case(manifest, one := inputs(1), cotangents(one), None))
        listed.append(_gates_case(manifest, two := inputs(2, other_shape), cotangents(two), other))
    scalars = {name: torch.tensor(value) for name, value in manifest.required_scalars.items()}
    return [dataclasses.replace(case, feeds={**scalars, **case.feeds}) for case in listed]


def _extra_inputs(module: nn.Module, manifest: Manifest, values: Values) -> AbstractContextManager[None]:
    """Inside, a call of `module` with its input alone passes on the extra inputs in `values`, too."""
    return with_extra_inputs(module, [values[port.name] for port in manifest.extra_inputs])


def _in(dtype: torch.dtype, values: Values) -> Values:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def _pullback_case(manifest: Manifest, given: Values, cotangent: Tensor, temperature: Temperature | None) -> Case:
    def solve(module: nn.Module, values: Values, reference: Temperatures) -> Values:
        outputs = reference_pullback(
            *(module, values["input"], values["cotangent"]), recipe=manifest.recipe, temperature=reference
        )
        return dict(zip(("output", "pullback"), outputs, strict=True))

    return _at_cotangent("pullback", manifest, given, cotangent, temperature, solve)


def _gates_case(manifest: Manifest, given: Values, cotangent: Tensor, temperature: Temperature | None) -> Case:
    soft = [gate for gate in manifest.gates if gate.soft]

    def solve(module: nn.Module, values: Values, reference: Temperatures) -> Values:
        *outputs, gates = reference_gates(
            *(module, values["input"], values["cotangent"]), recipe=manifest.recipe, temperature=reference
        )
        named: Values = dict(zip(("output", "pullback", "gradient"), outputs, strict=True))
        for gate, shown in zip(soft, gates, strict=True):
            kinds_shown = zip((PRE_ACTIVATION, SOFT, HARD, GATE_GAP), shown, strict=True)
            named |= {f"{kind}/{gate.node}": _as_plane(value, gate) for kind, value in kinds_shown if value is not None}
        return named

    return _at_cotangent("gates", manifest, given, cotangent, temperature, solve)


def _as_plane(value: Tensor, gate: GateSite) -> Tensor:
    """A one-dimensional pool's row as the plane of one row that the graph has."""
    return value.unsqueeze(-2) if value.dim() and value.dim() < len(gate.shape) else value


def _at_cotangent(
    kind: str,
    manifest: Manifest,
    given: Values,
    cotangent: Tensor,
    temperature: Temperature | None,
    answer: Callable[[nn.Module, Values, Temperatures], Values],
) -> Case:
    """The case of an artifact that has the inputs of pullback.onnx."""
    x, feeds = given["input"], {**given, "cotangent": cotangent}
    if temperature is not None:
        feeds["temperature"] = torch.tensor(temperature)
    reference, lowest = _reference_temperatures(manifest, temperature)

    def solve(module: nn.Module, dtype: torch.dtype) -> Values:
        values = _in(dtype, feeds)
        with _extra_inputs(module, manifest, values):
            return answer(module, values, reference)

    return Case(kind, _condition(manifest, x, temperature), lowest, feeds, solve)


def _step_case(
    manifest: Manifest, given: Values, elsewhere: Tensor, cotangent: Tensor, temperature: Temperature
) -> Case:
    x = given["input"]
    options, scalars = _ascent_options(manifest, cotangent, temperature)
    away = elsewhere - x  # one step size away, so that the next step leaves the ball
    origin = x + abs(options["step_size"]) * away / sample_norm(away, manifest.recipe.norm)
    feeds = {**given, "origin": origin, **scalars}

    def solve(module: nn.Module, dtype: torch.dtype) -> Values:
        values = _in(dtype, feeds)
        with _extra_inputs(module, manifest, values):
            outputs = reference_step(module, values["input"], values["origin"], values["cotangent"], **options)
        return dict(zip(("perturbed", "output", "pullback"), outputs, strict=True))

    condition = _condition(manifest, x, temperature) + ", 1 step"
    lowest = _reference_temperatures(manifest, temperature)[1]
    return Case("ascent_step", condition, lowest, feeds, solve)


def _ascent_case(manifest: Manifest, given: Values, cotangent: Tensor, temperature: Temperature) -> Case:
    x = given["input"]
    options, scalars = _ascent_options(manifest, cotangent, temperature)
    feeds = {**given, "steps": torch.tensor(STEPS), **scalars}

    def solve(module: nn.Module, dtype: torch.dtype) -> Values:
        values = _in(dtype, feeds)
        with _extra_inputs(module, manifest, values):
            outputs = reference_ascent(module, values["input"], values["cotangent"], steps=STEPS, **options)
        return dict(zip(("perturbed", "output", "pullback", "score"), outputs, strict=True))

    condition = _condition(manifest, x, temperature) + f", {STEPS} steps"
    lowest = _reference_temperatures(manifest, temperature)[1]
    return Case("ascent", condition, lowest, feeds, solve)


def _other_shape(module: nn.Module, manifest: Manifest, shape: tuple[int, ...]) -> tuple[int, ...]:
    """An image size that was not traced, where the artifacts take any size."""
    if not manifest.recipe.dynamic_size:
        return shape
    return next((size[1:] for size, _ in other_sizes(module, torch.zeros(1, *shape))), shape)


def _other_temperature(manifest: Manifest, generator: torch.Generator) -> Temperature:
    """A temperature other than the default; with an entry for each gate, all different and in no order."""
    other = manifest.defaults.temperature * OTHER_TEMPERATURE
    if manifest.recipe.temperature_input == "scalar":
        return other
    return [other * (0.5 + share) for share in torch.rand(len(manifest.gates), generator=generator).tolist()]


def _reference_temperatures(manifest: Manifest, given: Temperature | None) -> tuple[Temperatures, float]:
    """The oracle's temperatures for an artifact's input `given` (None: its default), and the lowest of them."""
    values = manifest.gate_temperatures(given)
    soft = [(gate.module, value) for gate, value in zip(manifest.gates, values, strict=True) if gate.soft]
    if manifest.recipe.temperatures or manifest.recipe.temperature_input == "per-gate":
        return soft, min((value for _, value in soft), default=1.0)
    assert not isinstance(given, list)
    shared = manifest.defaults.temperature if given is None else given
    return shared, shared


def _ascent_options(manifest: Manifest, cotangent: Tensor, temperature: Temperature) -> tuple[dict[str, Any], Values]:
    """The same options for the oracle and for the artifact; two steps reach the radius."""
    image, step_size = manifest.image, manifest.defaults.step_size * (HARD_STEP if is_hard(manifest) else 1)
    lengths = {"step_size": step_size, "radius": 1.2 * abs(step_size)}
    reference = _reference_temperatures(manifest, temperature)[0]
    options: dict[str, Any] = {"recipe": manifest.recipe, "range": None, "temperature": reference, **lengths}
    if image is not None:
        options |= {"range": image.range, "margin": image.margin}
    scalars = {"temperature": torch.tensor(temperature)} | {key: torch.tensor(value) for key, value in lengths.items()}
    return options, {"cotangent": cotangent, **scalars}


def _condition(manifest: Manifest, x: Tensor, temperature: Temperature | None) -> str:
    batch = f"{len(x)}, {x.shape[2]}x{x.shape[3]}" if manifest.recipe.dynamic_size else len(x)
    uses_temperature = any(
        port.name == "temperature" for artifact in manifest.artifacts.values() for port in artifact.inputs
    )
    if not uses_temperature:
        return f"batch {batch}"
    if isinstance(temperature, list) or (temperature is None and manifest.recipe.temperature_input == "per-gate"):
        return f"batch {batch}, T {'default' if temperature is None else 'per gate'}"
    return f"batch {batch}, T {manifest.defaults.temperature if temperature is None else temperature:.3g}"


def input_shape(manifest: Manifest) -> tuple[int, ...]:
    """Shape of one sample; where the artifacts leave a size free, the picture's."""
    ports = next((artifact.inputs for artifact in manifest.artifacts.values()), ())
    shape = tuple(size for size in ports[0].shape[1:] if isinstance(size, int)) if ports else ()
    if ports and len(shape) == len(ports[0].shape) - 1:
        return shape
    if manifest.image is None:
        raise SurgeonError("the manifest does not say what shape one input has", "Export the bundle again")
    return (manifest.image.channels, manifest.image.height, manifest.image.width)


def _output_shape(manifest: Manifest) -> tuple[int, ...] | None:
    """Shape of one sample's output; None where the artifacts leave a size free."""
    ports = next((artifact.outputs for artifact in manifest.artifacts.values()), ())
    sizes = next((port.shape[1:] for port in ports if port.name == "output"), ("",))
    return None if any(isinstance(size, str) for size in sizes) else tuple(map(int, sizes))


def _cotangent(objective: str, output: Tensor, generator: torch.Generator) -> Tensor:
    """The top class of each sample (a last ReLU may have shut others); for cross-entropy a distribution."""
    if output.dim() == 1:
        return torch.ones(output.shape)
    if objective == "cross-entropy":
        return torch.randn(output.shape, generator=generator).softmax(1)
    return torch.zeros(output.shape).scatter_(1, output.argmax(1, keepdim=True), 1.0)


def comparable(
    module: nn.Module, recipe: Recipe, example: Example, graph: GraphModule | None = None
) -> tuple[nn.Module, Recipe]:
    """`module` and `recipe` as autograd can follow them; `example` [N >= 2, …] is an input of `module`.

    Autograd knows the network's modules and what it returns, and no node of its graph. Where `recipe.at` names a node,
    the captured graph up to the layers takes the network's place: `graph`, or else a new capture.
    """
    with evaluating(module), torch.no_grad():
        found = kinds(module, recipe.at, module(*tensors(example))) if recipe.at else {}
    nodes = [name for name in recipe.at if found[name] == "node"]
    if not nodes:
        return module, recipe
    if recipe.gate_scope == "modules":
        raise SurgeonError(
            f"the graph up to {nodes[0]} does not tell gates that are modules, so nothing compares with it",
            "Name a module with --at, leave --gate-scope out, or give --no-verify",
        )
    graph = graph or capture(module, example, recipe.at).graph
    return _Joined(GraphModule(graph, graph.graph)).eval(), dataclasses.replace(recipe, at=())


class _Joined(Wrapper):
    """A captured graph whose layers are one output."""

    def forward(self, x: Tensor) -> Tensor:
        return joined(self.wrapped(x))


def is_hard(manifest: Manifest) -> bool:
    """Whether any gate jumps."""
    return any(not gate.soft for gate in manifest.gates)
