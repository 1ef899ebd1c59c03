"""Run every artifact on unseen inputs and compare it with autograd."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Artifact, Comparison, Manifest, Precision, Recipe
from surgeon.bundle.ports import GATE_GAP, HARD, PRE_ACTIVATION
from surgeon.errors import OptionError, ProviderError, SurgeonError, VerificationError, first_line
from surgeon.network.inputs import example
from surgeon.network.modules import copied
from surgeon.network.wrapping import source_name
from surgeon.runtime.binding import DeviceSession, HostSession, bind
from surgeon.runtime.providers import Device, open_session
from surgeon.runtime.tuning import tuned
from surgeon.verify.cases import Case, Values, cases, comparable, input_shape, is_hard

SOFT_TOLERANCE = 1e-4
"""Of fp32 pullbacks with soft gates at T >= 0.1, which measure 1e-7 to 1e-5; below, rounding grows as 1/T."""

HARD_TOLERANCE = 2e-2
"""Where a gate is hard: a pre-activation near zero may flip it on rounding, and takes whole paths with it. In float32
autograd itself is 1e-6 to 5e-3 from its own float64."""

OUTPUT_TOLERANCE = 1e-4

ASCENT_TOLERANCE = 1e-3
"""Rounding errors accumulate over ascent steps."""

HARD_ASCENT_TOLERANCE = 6e-2

HALF_TOLERANCE = 5e-2
"""Of fp16 artifacts, whose numbers have 11 bits, and of fp32 ones whose weights are stored so, or that run in TF32."""

ROUNDING = 5
"""An artifact may deviate by up to ROUNDING × autograd's own error (this precision vs the next higher one), capped at
MOST_ROUNDING: untrained networks may be so chaotic that no two float32 computations agree, and in float16 hard gates
flip sooner."""

MOST_ROUNDING = {"fp32": HARD_TOLERANCE, "fp16": 0.2}

Runner = Callable[[Values], Values]


class _CaseResult:
    """A case and its expected outputs, which are computed once, when first needed, for all artifacts."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        self.case, self._module = case, module
        self._rounding: dict[str, dict[str, float]] = {}

    @cached_property
    def expected(self) -> Values:
        """The outputs in float32. Raises VerificationError where the pullback is zero, or a value is not finite."""
        found = self.case.solve(self._module, torch.float32)
        _require_finite(found, self._module)
        if not found["pullback"].any():
            raise VerificationError(
                "the network's pullback is zero everywhere, so comparing proves nothing",
                "Give weights that are not degenerate, or --no-verify",
            )
        return found

    def rounding(self, precision: str) -> dict[str, float]:
        """Autograd's own error: fp16 against `expected` (float32), or `expected` against float64.

        By kind of quantity, the worst of all gates: which gates flip on rounding is chance. Empty where the network
        does not run in the other precision.
        """
        if precision not in self._rounding:
            self._rounding[precision] = self._measured(precision)
        return self._rounding[precision]

    def _measured(self, precision: str) -> dict[str, float]:
        other = torch.float64 if precision == "fp32" else torch.float16
        try:
            values = self.case.solve(copied(self._module).to(other), other)
        except (RuntimeError, TypeError, SurgeonError):
            return {}
        worst: dict[str, float] = {}
        for quantity in self.expected:
            error = _error(quantity, self.expected, values, self.case)
            worst[_kind(quantity)] = max(error, worst.get(_kind(quantity), 0.0))
        return worst


def verify(
    folder: str | Path,
    module: nn.Module,
    *,
    manifest: Manifest | None = None,
    tolerance: float | None = None,
    device: str = "cpu",
    provider_options: Mapping[str, Any] | None = None,
    progress: Callable[[Comparison], None] | None = None,
    seed: int = 20250722,
    graph: GraphModule | None = None,
) -> tuple[Comparison, ...]:
    """Run every artifact in `folder` and compare it with plain autograd on `module`, preprocessing included.

    `manifest` is read from the folder unless it is given. Inputs are fresh (`seed`); batches are 1, 2 and 3; the
    temperature is once left to its default and once another (one for each gate, where they are given so). Errors are
    relative L2 norms; `perturbed` is compared without the input. `tolerance` replaces every default; by default, a
    comparison over its tolerance is judged again by the rounding error of autograd itself (`ROUNDING`).
    ONNX files run on `device` with its `provider_options`, as `surgeon.load` has it, and on the CPU once more as that
    tunes them; TorchScript runs on the CPU. Under TF32, fp32 is held to what fp16 is, and the lines say so.
    `graph` is the captured network, where the recipe's layers are nodes; without it, the network is captured again.
    `progress` is called with each line as it is known. A line over its tolerance raises nothing here: see `require`.
    Raises VerificationError where an artifact does not run, or where the pullback is zero, so that nothing is proved,
    ProviderError for a device that is not there, and OptionError for an option that it does not take.
    """
    folder, place = Path(folder), Device(device, provider_options or {})
    manifest = manifest or Bundle.open(folder).manifest
    module, recipe = comparable(module, manifest.recipe, example(input_shape(manifest), manifest.extra_inputs), graph)
    manifest = dataclasses.replace(manifest, recipe=recipe)
    results = [_CaseResult(case, module) for case in cases(module, manifest, seed)]
    lines = []
    for name, artifact in manifest.artifacts.items():
        own_results = [result for result in results if result.case.kind == Path(name).stem]
        # One session at a time: each holds the weights, and packed copies of them.
        precision, note = _precision(artifact, recipe, place)
        held = dataclasses.replace(manifest, recipe=dataclasses.replace(recipe, precision=precision))
        for form, asked, run in _forms(folder / name, artifact, place, own_results, manifest):
            for result in asked:
                outputs = _run(name, run, result.case.feeds)
                compared = []
                for quantity in result.expected:
                    line = _compare(
                        name, quantity, result.case, outputs, result.expected, held, tolerance, place.provider
                    )
                    line = dataclasses.replace(line, condition=line.condition + note + form)
                    if not line.passed and tolerance is None:
                        rounding = result.rounding(precision).get(_kind(quantity), 0.0)
                        explained = min(ROUNDING * rounding, MOST_ROUNDING[precision])
                        line = dataclasses.replace(line, tolerance=max(line.tolerance, explained))
                    compared.append(line)
                for line in _worst(compared):
                    lines.append(line)
                    if progress is not None:
                        progress(line)
            del run
    if not lines:
        raise SurgeonError(f"{folder} holds no artifact to verify", "Export it again")
    return tuple(lines)


def _precision(artifact: Artifact, recipe: Recipe, device: Device) -> tuple[Precision, str]:
    """The precision whose tolerances hold for `artifact` on `device`, and a note on it for the lines."""
    if recipe.precision == "fp32" and artifact.format == "onnx":
        if device.tf32:
            return "fp16", ", TF32"
        if recipe.weights_dtype == "fp16":
            return "fp16", ", stored in fp16"
    return recipe.precision, ""


def _kind(quantity: str) -> str:
    return quantity.partition("/")[0]


def _worst(lines: list[Comparison]) -> list[Comparison]:
    """Of quantities KIND/GATE, the line of the worst gate of each kind; every other line."""
    worst: dict[str, Comparison] = {}
    for line in lines:
        kind = _kind(line.quantity)
        if kind not in worst or line.error / line.tolerance > worst[kind].error / worst[kind].tolerance:
            worst[kind] = line
    return list(worst.values())


def _forms(
    path: Path, artifact: Artifact, device: Device, asked: list[_CaseResult], manifest: Manifest
) -> Iterator[tuple[str, list[_CaseResult], Runner]]:
    """The file as it is, with every case; and as `surgeon.load` tunes it on the CPU, with the first case.

    In a single step only the pullback is tuned, which has its own comparison. A CUDA graph holds no loop, so
    `surgeon.load` does not run the loop where others are captured; it is compared without.
    """
    loop = device.captures and path.name == "ascent.onnx"
    yield ", no graph" if loop else "", asked, _runner(path, artifact, device.uncaptured if loop else device)
    if device.name != "cpu" or artifact.format != "onnx" or not asked or path.stem == "ascent_step":
        return
    given = asked[0].case.feeds.get("temperature", torch.tensor(manifest.defaults.temperature))
    temperature = float(given) if given.dim() == 0 else None
    if tuned(path, temperature) is not None:
        yield ", tuned", asked[:1], _runner(path, artifact, device, tuning=True, temperature=temperature)


def _require_finite(found: Values, module: nn.Module) -> None:
    """Raise VerificationError for NaN or infinity in output or pullback, which the network itself causes."""
    if not found["output"].isfinite().all():
        wrong = [source_name(name) for name, value in module.named_parameters() if not value.isfinite().all()]
        raise VerificationError(
            f"the network's output is not finite{f': {wrong[0]} holds NaN or infinity' if wrong else ''}",
            "Give weights and an input range with which it is",
        )
    if not found["pullback"].isfinite().all():
        raise VerificationError(
            "the network's own gradient is not finite",
            "A root or logarithm of zero is the usual cause: add a small number",
        )


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


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, L2 norms over everything; infinite for another shape or values not finite."""
    if found.shape != expected.shape:
        return math.inf
    distance = (found.double() - expected.double()).norm().item()
    if distance == 0:
        return 0.0
    scale = expected.double().norm().item()
    return distance / scale if scale and math.isfinite(distance / scale) else math.inf


def _compare(
    name: str,
    quantity: str,
    case: Case,
    found: Values,
    expected: Values,
    manifest: Manifest,
    tolerance: float | None,
    provider: str,
) -> Comparison:
    if quantity not in found:
        raise VerificationError(f"{name} has no output {quantity}", "Export the bundle again")
    limit = default_tolerance(manifest, case, quantity) if tolerance is None else tolerance
    error = _error(quantity, found, expected, case)
    where = "torch" if name.endswith(".ts") else provider
    return Comparison(name, quantity, case.condition, error, limit, where)


def _error(quantity: str, found: Values, expected: Values, case: Case) -> float:
    # Relative to the input itself, the difference that was added would not count.
    base = case.feeds["input"] if quantity == "perturbed" else 0.0
    return relative_error(found[quantity] - base, expected[quantity] - base)


def default_tolerance(manifest: Manifest, case: Case, quantity: str) -> float:
    """The largest relative error that rounding explains, with a margin."""
    recipe = manifest.recipe
    if recipe.precision == "fp16":
        return HALF_TOLERANCE
    kind = _kind(quantity)
    if kind in ("output", PRE_ACTIVATION) and case.kind != "ascent":
        return OUTPUT_TOLERANCE
    if is_hard(manifest) or kind in ("gradient", HARD, GATE_GAP):
        return HARD_ASCENT_TOLERANCE if case.kind == "ascent" else HARD_TOLERANCE
    soft = min(HARD_TOLERANCE, SOFT_TOLERANCE * max(1.0, 0.1 / case.temperature))
    return max(soft, ASCENT_TOLERANCE) if case.kind == "ascent" else soft


def _run(name: str, runner: Runner, feeds: Values) -> Values:
    try:
        return runner(feeds)
    except Exception as error:  # ONNX Runtime's and TorchScript's own exceptions have no common base
        raise VerificationError(f"{name} does not run ({first_line(error)})", _remedy(error)) from error


def _runner(
    path: Path, artifact: Artifact, device: Device, tuning: bool = False, temperature: float | None = None
) -> Runner:
    if not path.is_file():
        raise SurgeonError(f"{path} is missing", "Export the bundle again")
    try:
        if artifact.format == "torchscript":
            return _torchscript_runner(path, artifact)
        # PyTorch uses the cores in between.
        session = open_session(path, device, None, tuning=tuning, temperature=temperature, spinning=False)
        return _onnx_runner(bind(session, device), device.captures)
    except (ProviderError, OptionError):
        raise
    except Exception as error:
        raise VerificationError(f"{path.name} does not load ({first_line(error)})", _remedy(error)) from error


def _onnx_runner(loaded: HostSession | DeviceSession, captures: bool) -> Runner:
    session = loaded.session
    types = {port.name: port.type for port in [*session.get_inputs(), *session.get_overridable_initializers()]}
    dtypes = {
        **{"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bool)": torch.bool},
        **{"tensor(int64)": torch.int64, "tensor(int32)": torch.int32},
    }

    def run(feeds: Values) -> Values:
        given = {name: feeds[name].to(dtypes[types[name]]).numpy() for name in types if name in feeds}
        if captures:
            # Captured on other values, so that a value that the graph has kept would show.
            other = {name: value / 2 if value.dtype.kind == "f" else value for name, value in given.items()}
            for _ in range(2):  # the first run allocates
                loaded.run({name: value.astype(given[name].dtype) for name, value in other.items()})
        outputs = loaded.run(given)
        names = [port.name for port in session.get_outputs()]
        return {name: torch.from_numpy(value).float() for name, value in zip(names, outputs, strict=True)}

    return run


def _torchscript_runner(path: Path, artifact: Artifact) -> Runner:
    with warnings.catch_warnings():
        # Every call of TorchScript warns that it is deprecated; the files are for hosts that have nothing else.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is (deprecated|not supported)")
        script = torch.jit.load(str(path), map_location="cpu")
    dtypes = {port.name: getattr(torch, port.dtype) for port in artifact.inputs}
    types = {argument.name: str(argument.type) for argument in script.forward.schema.arguments}

    def run(feeds: Values) -> Values:
        given = {}
        for name in dtypes:
            if name in feeds:
                value = feeds[name].to(dtypes[name])
                given[name] = value.item() if types.get(name) in ("int", "float") else value
        with torch.no_grad():
            outputs = script(**given)
        names = [port.name for port in artifact.outputs]
        return {name: value.float() for name, value in zip(names, outputs, strict=True)}

    return run


def _remedy(error: Exception) -> str:
    if "bfloat16" in str(error):
        return "The network computes in bfloat16, as under autocast: leave that out, or give --formats torchscript"
    return "Export the bundle again"
