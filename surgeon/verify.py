"""Whether artifacts compute what autograd computes: each file run on inputs it has not seen, against the oracle."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgeon.artifacts.bundle import Bundle
from surgeon.artifacts.manifest import Artifact, Comparison, Manifest, Recipe
from surgeon.capture import capture, evaluating
from surgeon.errors import SurgeonError, VerificationError
from surgeon.inputs import Example, beside, example, samples, tensors
from surgeon.layers import joined, kinds
from surgeon.oracle import forward, reference_ascent, reference_pullback, reference_step, sample_norm
from surgeon.oracle_rules import Temperatures
from surgeon.sizes import other_sizes
from surgeon.weights import varied_input

SOFT_TOLERANCE = 1e-4
"""Of fp32 pullbacks with soft gates at T >= 0.1, which measure 1e-7 to 1e-5; below, rounding grows as 1/T."""

HARD_TOLERANCE = 2e-2
"""Where a gate is hard: a pre-activation near zero may flip it on rounding, and takes whole paths with it. In float32
autograd itself is 1e-6 to 5e-3 from its own float64."""

OUTPUT_TOLERANCE = 1e-4

ASCENT_TOLERANCE = 1e-3
"""Each step of an ascent hands its rounding on to the next."""

HARD_ASCENT_TOLERANCE = 6e-2
HARD_STEP = 0.05
"""With hard gates an ascent is compared in steps of this many times the default: a full step away from where rounding
flipped one gate others are open, and the gradients have parted whatever the artifact does."""

HALF_TOLERANCE = 5e-2
"""Of fp16 artifacts, whose numbers have 11 bits."""

OTHER_TEMPERATURE = 2.3
"""The second temperature is this many times the default."""

STEPS = 2

_ERRORS_ONLY = 3  # ONNX Runtime warns of every input with a default, and artifacts have such inputs

Values = dict[str, Tensor]
Given = float | list[float]
"""What an artifact is given as its temperature: a number, or one for each gate and pool."""

Runner = Callable[[Values], Values]


@dataclass(frozen=True)
class Problem:
    """Inputs for one kind of artifact, and how autograd finds the outputs."""

    kind: str  # stem of the artifact's file name: pullback, ascent_step, ascent
    condition: str  # such as "batch 3, T 0.69"
    temperature: float  # the lowest, where gates have their own
    feeds: Values  # what is left out takes the artifact's default
    solve: Callable[[], Values]


def verify(
    folder: str | Path,
    module: nn.Module,
    *,
    manifest: Manifest | None = None,
    tolerance: float | None = None,
    progress: Callable[[Comparison], None] | None = None,
    seed: int = 20250722,
) -> tuple[Comparison, ...]:
    """Run every artifact in `folder` and compare it with plain autograd on `module`, preprocessing included.

    `manifest` is read from the folder unless it is given. Inputs are fresh (`seed`); batches are 1, 2 and 3; the
    temperature is once left to its default and once another (one for each gate, where they are given so). Errors are
    relative L2 norms; `perturbed` is compared by what was added to the input. `tolerance` replaces every default one.
    `progress` is told each line as it is known. A line over its tolerance raises nothing here: see `require`. Raises
    VerificationError where an artifact does not run, or where the pullback is zero, so that nothing is proved.
    """
    folder = Path(folder)
    manifest = manifest or Bundle.open(folder).manifest
    module, recipe = comparable(module, manifest.recipe, example(input_shape(manifest), manifest.others))
    manifest = dataclasses.replace(manifest, recipe=recipe)
    runners = {name: _runner(folder / name, artifact) for name, artifact in manifest.artifacts.items()}
    lines = []
    for problem in problems(module, manifest, seed):
        names = [name for name in runners if Path(name).stem == problem.kind]
        expected = problem.solve() if names else {}
        if names and not expected["pullback"].any():
            raise VerificationError(
                "the network's pullback is zero everywhere, so comparing proves nothing",
                "Give weights that are not degenerate, or --no-verify",
            )
        for name in names:
            found = _run(name, runners[name], problem.feeds)
            for quantity in expected:
                lines.append(_compare(name, quantity, problem, found, expected, manifest, tolerance))
                if progress is not None:
                    progress(lines[-1])
    if not lines:
        raise SurgeonError(f"{folder} holds no artifact to verify", "Export it again")
    return tuple(lines)


def require(comparisons: tuple[Comparison, ...]) -> None:
    """Raise VerificationError, naming the worst line, unless every one passed."""
    failed = [line for line in comparisons if not line.passed]
    if failed:
        worst = max(failed, key=lambda line: line.error / line.tolerance)
        raise VerificationError(
            f"{len(failed)} of {len(comparisons)} comparisons with autograd failed; the worst: {worst.quantity} of "
            f"{worst.artifact} at {worst.condition} is off by {worst.error:.1e} ({worst.tolerance:.0e} allowed)",
            "The artifact is not to be trusted: please report it, with the model's source",
        )


def comparable(module: nn.Module, recipe: Recipe, example: Example) -> tuple[nn.Module, Recipe]:
    """`module` and `recipe` as autograd can follow them, [N >= 2, …] being an `example` of what it takes.

    Autograd knows the network's modules and what it returns, and no node of its graph: where `recipe.at` names one, the
    captured graph up to the layers takes the network's place.
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
    graph = capture(module, example, recipe.at).graph
    return _Joined(GraphModule(graph, graph.graph)).eval(), dataclasses.replace(recipe, at=())


class _Joined(nn.Module):
    """A captured graph whose layers are one output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return joined(self.network(x))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, L2 norms over everything; infinite for another shape or values not finite."""
    if found.shape != expected.shape:
        return math.inf
    distance = (found.double() - expected.double()).norm().item()
    if distance == 0:
        return 0.0
    scale = expected.double().norm().item()
    return distance / scale if scale and math.isfinite(distance / scale) else math.inf


def problems(module: nn.Module, manifest: Manifest, seed: int) -> list[Problem]:
    """What every artifact is asked: two pullbacks, one step of an ascent that is under way, and one ascent."""
    shape = input_shape(manifest)
    generator = torch.Generator().manual_seed(seed)
    low, high = manifest.image.range if manifest.image is not None else (-1.0, 1.0)

    def inputs(batch: int, shape: tuple[int, ...] = shape) -> Values:
        others = samples(manifest.others, batch, generator)
        names = (port.name for port in manifest.others)
        return {"input": varied_input(batch, shape, generator, low, high), **dict(zip(names, others, strict=True))}

    other_shape = _other_shape(module, manifest, shape)
    other = _other_temperature(manifest, generator)

    def output(given: Values) -> Tensor:
        with torch.no_grad(), _given(module, manifest, given):
            return forward(module, given["input"], manifest.recipe.at)

    def cotangents(given: Values) -> Tensor:
        return torch.randn(output(given).shape, generator=generator)

    def target(given: Values) -> Tensor:
        return _cotangent(manifest.recipe.objective, output(given), generator)

    stepped, climbed = inputs(2), inputs(2, other_shape)
    return [
        _pullback_problem(module, manifest, one := inputs(1), cotangents(one), None),
        _pullback_problem(module, manifest, three := inputs(3, other_shape), cotangents(three), other),
        _step_problem(module, manifest, stepped, inputs(2)["input"], target(stepped), other),
        _ascent_problem(module, manifest, climbed, target(climbed), other),
    ]


def _given(module: nn.Module, manifest: Manifest, given: Values) -> AbstractContextManager[None]:
    """Whoever calls `module` with an input alone inside gives it the others of `given`, too."""
    return beside(module, [given[port.name] for port in manifest.others])


def _pullback_problem(
    module: nn.Module, manifest: Manifest, given: Values, cotangent: Tensor, temperature: Given | None
) -> Problem:
    x, feeds = given["input"], {**given, "cotangent": cotangent}
    if temperature is not None:
        feeds["temperature"] = torch.tensor(temperature)
    reference, lowest = _reference_temperatures(manifest, temperature)

    def solve() -> Values:
        with _given(module, manifest, given):
            found = reference_pullback(module, x, cotangent, recipe=manifest.recipe, temperature=reference)
        return dict(zip(("output", "pullback"), found, strict=True))

    return Problem("pullback", _condition(manifest, x, temperature), lowest, feeds, solve)


def _step_problem(
    module: nn.Module, manifest: Manifest, given: Values, elsewhere: Tensor, cotangent: Tensor, temperature: Given
) -> Problem:
    x = given["input"]
    options, feeds = _ascent_options(manifest, cotangent, temperature)
    away = elsewhere - x  # one step size away, so that the next step leaves the ball
    origin = x + abs(options["step_size"]) * away / sample_norm(away, manifest.recipe.norm)

    def solve() -> Values:
        with _given(module, manifest, given):
            found = reference_step(module, x, origin, cotangent, **options)
        return dict(zip(("perturbed", "output", "pullback"), found, strict=True))

    condition = _condition(manifest, x, temperature) + ", 1 step"
    lowest = _reference_temperatures(manifest, temperature)[1]
    return Problem("ascent_step", condition, lowest, {**given, "origin": origin, **feeds}, solve)


def _ascent_problem(
    module: nn.Module, manifest: Manifest, given: Values, cotangent: Tensor, temperature: Given
) -> Problem:
    x = given["input"]
    options, feeds = _ascent_options(manifest, cotangent, temperature)

    def solve() -> Values:
        with _given(module, manifest, given):
            found = reference_ascent(module, x, cotangent, steps=STEPS, **options)
        return dict(zip(("perturbed", "output", "pullback", "score"), found, strict=True))

    condition = _condition(manifest, x, temperature) + f", {STEPS} steps"
    lowest = _reference_temperatures(manifest, temperature)[1]
    return Problem("ascent", condition, lowest, {**given, "steps": torch.tensor(STEPS), **feeds}, solve)


def _other_shape(module: nn.Module, manifest: Manifest, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A size that was not traced, where the artifacts take any."""
    if not manifest.recipe.dynamic_size:
        return shape
    return next((size[1:] for size, _ in other_sizes(module, torch.zeros(1, *shape))), shape)


def _other_temperature(manifest: Manifest, generator: torch.Generator) -> Given:
    """One that is not the default; where each gate has its entry, all different, and in no order."""
    other = manifest.defaults.temperature * OTHER_TEMPERATURE
    if manifest.recipe.temperature_input == "scalar":
        return other
    return [other * (0.5 + share) for share in torch.rand(len(manifest.gates), generator=generator).tolist()]


def _reference_temperatures(manifest: Manifest, given: Given | None) -> tuple[Temperatures, float]:
    """What the oracle is given where the artifact gets `given` (None: its default), and the lowest T there is."""
    values = manifest.gate_temperatures(given)
    soft = [(gate.module, value) for gate, value in zip(manifest.gates, values, strict=True) if gate.rule == "soft"]
    if manifest.recipe.temperatures or manifest.recipe.temperature_input == "per-gate":
        return soft, min((value for _, value in soft), default=1.0)
    assert not isinstance(given, list)
    shared = manifest.defaults.temperature if given is None else given
    return shared, shared


def _ascent_options(manifest: Manifest, cotangent: Tensor, temperature: Given) -> tuple[dict[str, Any], Values]:
    """The same numbers for the oracle and for the artifact; the radius is one that two steps reach."""
    image, step_size = manifest.image, manifest.defaults.step_size * (HARD_STEP if _is_hard(manifest) else 1)
    lengths = {"step_size": step_size, "radius": 1.2 * abs(step_size)}
    reference = _reference_temperatures(manifest, temperature)[0]
    options: dict[str, Any] = {"recipe": manifest.recipe, "range": None, "temperature": reference, **lengths}
    if image is not None:
        options |= {"range": image.range, "margin": image.margin}
    scalars = {"temperature": torch.tensor(temperature)} | {key: torch.tensor(value) for key, value in lengths.items()}
    return options, {"cotangent": cotangent, **scalars}


def _condition(manifest: Manifest, x: Tensor, temperature: Given | None) -> str:
    batch = f"{len(x)}, {x.shape[2]}x{x.shape[3]}" if manifest.recipe.dynamic_size else len(x)
    tempered = any("temperature" in _names(artifact) for artifact in manifest.artifacts.values())
    if not tempered:
        return f"batch {batch}"
    if isinstance(temperature, list) or (temperature is None and manifest.recipe.temperature_input == "per-gate"):
        return f"batch {batch}, T {'default' if temperature is None else 'per gate'}"
    return f"batch {batch}, T {manifest.defaults.temperature if temperature is None else temperature:.3g}"


def input_shape(manifest: Manifest) -> tuple[int, ...]:
    """Shape of one sample; where the artifacts leave a size open, the picture's."""
    ports = next((artifact.inputs for artifact in manifest.artifacts.values()), ())
    shape = tuple(size for size in ports[0].shape[1:] if isinstance(size, int)) if ports else ()
    if ports and len(shape) == len(ports[0].shape) - 1:
        return shape
    if manifest.image is None:
        raise SurgeonError("the manifest does not say what shape one input has", "Export the bundle again")
    return (manifest.image.channels, manifest.image.height, manifest.image.width)


def _cotangent(objective: str, output: Tensor, generator: torch.Generator) -> Tensor:
    """One class per sample, the top one (a last ReLU may have shut others); for cross-entropy a distribution."""
    if objective == "cross-entropy":
        return torch.randn(output.shape, generator=generator).softmax(1)
    return torch.zeros(output.shape).scatter_(1, output.argmax(1, keepdim=True), 1.0)


def _compare(
    name: str,
    quantity: str,
    problem: Problem,
    found: Values,
    expected: Values,
    manifest: Manifest,
    tolerance: float | None,
) -> Comparison:
    if quantity not in found:
        raise VerificationError(f"{name} has no output {quantity}", "Export the bundle again")
    # Next to the input itself, what was added would not count.
    base = problem.feeds["input"] if quantity == "perturbed" else 0.0
    limit = default_tolerance(manifest, problem, quantity) if tolerance is None else tolerance
    error = relative_error(found[quantity] - base, expected[quantity] - base)
    provider = "torch" if name.endswith(".ts") else "CPUExecutionProvider"
    return Comparison(name, quantity, problem.condition, error, limit, provider)


def default_tolerance(manifest: Manifest, problem: Problem, quantity: str) -> float:
    """The largest relative error that rounding explains, generously."""
    recipe = manifest.recipe
    if recipe.precision == "fp16":
        return HALF_TOLERANCE
    if quantity == "output" and problem.kind != "ascent":
        return OUTPUT_TOLERANCE
    if _is_hard(manifest):
        return HARD_ASCENT_TOLERANCE if problem.kind == "ascent" else HARD_TOLERANCE
    soft = min(HARD_TOLERANCE, SOFT_TOLERANCE * max(1.0, 0.1 / problem.temperature))
    return max(soft, ASCENT_TOLERANCE) if problem.kind == "ascent" else soft


def _is_hard(manifest: Manifest) -> bool:
    """Whether any gate jumps."""
    return any(gate.rule != "soft" for gate in manifest.gates)


def _names(artifact: Artifact) -> list[str]:
    return [port.name for port in artifact.inputs]


def _run(name: str, runner: Runner, feeds: Values) -> Values:
    try:
        return runner(feeds)
    except Exception as error:  # ONNX Runtime's and TorchScript's own exceptions have no common base
        raise VerificationError(f"{name} does not run ({_first_line(error)})", "Export the bundle again") from error


def _runner(path: Path, artifact: Artifact) -> Runner:
    if not path.is_file():
        raise SurgeonError(f"{path} is missing", "Export the bundle again")
    try:
        return _onnx_runner(path) if artifact.format == "onnx" else _torchscript_runner(path, artifact)
    except Exception as error:
        raise VerificationError(
            f"{path.name} does not load ({_first_line(error)})", "Export the bundle again"
        ) from error


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch wants the cores in between
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    types = {port.name: port.type for port in [*session.get_inputs(), *session.get_overridable_initializers()]}
    dtypes = {
        **{"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bool)": torch.bool},
        **{"tensor(int64)": torch.int64, "tensor(int32)": torch.int32},
    }

    def run(feeds: Values) -> Values:
        given = {name: feeds[name].to(dtypes[types[name]]).numpy() for name in types if name in feeds}
        outputs = session.run(None, given)
        names = [port.name for port in session.get_outputs()]
        return {name: torch.from_numpy(value).float() for name, value in zip(names, outputs, strict=True)}

    return run


def _torchscript_runner(path: Path, artifact: Artifact) -> Runner:
    with warnings.catch_warnings():
        # All of TorchScript says that it is deprecated; the twins are for hosts that have nothing else.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is (deprecated|not supported)")
        script = torch.jit.load(str(path), map_location="cpu")
    dtypes = {port.name: getattr(torch, port.dtype) for port in artifact.inputs}
    types = {argument.name: str(argument.type) for argument in script.forward.schema.arguments}

    def run(feeds: Values) -> Values:
        given = {}
        for name in _names(artifact):
            if name in feeds:
                value = feeds[name].to(dtypes[name])
                given[name] = value.item() if types.get(name) in ("int", "float") else value
        with torch.no_grad():
            outputs = script(**given)
        names = [port.name for port in artifact.outputs]
        return {name: value.float() for name, value in zip(names, outputs, strict=True)}

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
