"""From a source to a verified bundle: capture, rewrite, write, verify, and only then put in place."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.fx import GraphModule

from surgeon.bundle import ports
from surgeon.bundle.atomic import staged
from surgeon.bundle.folder import Bundle, seal
from surgeon.bundle.manifest import Comparison, Defaults, Layer, Manifest, Recipe, default_temperature
from surgeon.conversion.probe import GateProbe
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import RecordedPullback, capture_network, explicit_graph, record_pullback
from surgeon.conversion.writers.ascent import clamp_range
from surgeon.conversion.writers.onnx_writer import WEIGHTS, embed_weights, write_gates, write_onnx
from surgeon.conversion.writers.plan import Plan
from surgeon.conversion.writers.storage import store_again
from surgeon.conversion.writers.torchscript_writer import write_torchscript
from surgeon.errors import SurgeonError
from surgeon.network import sizes
from surgeon.network.inputs import Shapes, example
from surgeon.network.modules import copied
from surgeon.network.sources import IN_FILE, Source, SourceOptions, resolve_with
from surgeon.network.wrapping import Wrapper
from surgeon.verify.verify import require, verify

FORMATS = tuple(ports.FILES)
STAGES = ("rewrite", "write TorchScript", "write ONNX", "verify")

_VERSIONS = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")


def export(
    source: str | nn.Module | Source,
    destination: str | Path,
    recipe: Recipe | None = None,
    defaults: Defaults | None = None,
    *,
    weights: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    preprocess: str | None = None,
    input: str | None = None,
    extra_inputs: Shapes | None = None,
    formats: Sequence[str] = FORMATS,
    single_file: bool = False,
    shard_size: int | None = None,
    check: bool = True,
    tolerance: float | None = None,
    stage: Callable[[str], None] = lambda name: None,
    report: Callable[[Comparison], None] = lambda line: None,
) -> Bundle:
    """Convert `source` and write its bundle to the folder `destination`.

    `source` is a model's name, `package.module:factory`, a file, or a module, which is copied and not touched;
    `weights`, `input_shape` (without the batch), `preprocess`, `input` and `extra_inputs` are as in
    `surgeon.network.sources.resolve`, whose result may be given instead. `recipe` holds what is baked in, `defaults`
    the values that a caller of the artifacts may leave out (by default the source's own temperature). ONNX files share
    one file of weights, hold them each with `single_file`, or share files of `shard_size` MB at most, unless a tensor
    is larger. The bundle is written beside its place, verified there against autograd unless `check` is false, and only
    then moved into place, over an older bundle. `stage(name)` is called as each stage in STAGES begins, `report(line)`
    for each comparison. Raises SurgeonError for options that do not fit, ConversionError where the network cannot be
    rewritten, and VerificationError where an artifact is over its tolerance; nothing is left then.
    """
    options = SourceOptions(weights, input_shape, preprocess, input, extra_inputs)
    if not isinstance(source, Source):
        source = resolve_with(source, options)
    elif options != SourceOptions():
        raise SurgeonError("a resolved source has its weights, input shape and preprocessing", "Give them to resolve")
    recipe = recipe or Recipe()
    defaults = defaults or Defaults(temperature=source.temperature)
    _refuse(recipe, formats, shard_size)
    if single_file and shard_size is not None:
        raise SurgeonError("a single file has its weights inside, and none in shards", "Give one of the two")
    if recipe.dynamic_size and source.image is None:
        raise SurgeonError("the input is not a picture, whose height and width could be free", sizes.REMEDY)
    if recipe.gate_scope == "modules" and source.model.weights == IN_FILE:
        raise SurgeonError("a file does not say which of its ReLUs were modules", "Give the gate scope all")
    with staged(destination) as folder:
        stage("rewrite")
        rewritten = _rewrite(source, recipe)
        manifest, plan = _plan(source, recipe, defaults, formats, rewritten)
        passes = _write(folder, rewritten, plan, formats, single_file, shard_size, stage)
        graph = rewritten.graph
        del rewritten  # and with it a copy of the weights
        lines: tuple[Comparison, ...] = ()
        if check:
            stage("verify")
            lines = verify(folder, source.module, manifest=manifest, tolerance=tolerance, progress=report, graph=graph)
            require(lines)
        seal(folder, dataclasses.replace(manifest, passes=manifest.passes | passes, verification=lines))
    return Bundle.open(destination)


class _Rewritten(NamedTuple):
    """What is written: the recorded pullback and, with the recipe's `gate_outputs`, its probe.

    `graph` is the float32 network as captured, which verification compares with where `recipe.at` names a node.
    """

    pullback: RecordedPullback[PullbackModule]
    probe: RecordedPullback[GateProbe] | None
    graph: GraphModule | None


def _rewrite(source: Source, recipe: Recipe) -> _Rewritten:
    """Capture the network once, and record every pullback that the recipe asks for."""
    network = _Half(source.module) if recipe.precision == "fp16" else source.module
    captured = capture_network(network, example(source.input_shape, source.extra_inputs), recipe)
    recorded = record_pullback(captured)
    if recipe.objective == "cross-entropy" and not recorded.pullback.output_shape:
        raise SurgeonError("cross-entropy is over classes, and the output is one number", "Give --objective logit")
    probe = record_pullback(captured, GateProbe) if recipe.gate_outputs else None
    return _Rewritten(recorded, probe, captured.unoptimised if recipe.precision == "fp32" else None)


def _plan(
    source: Source, recipe: Recipe, defaults: Defaults, formats: Sequence[str], rewritten: _Rewritten
) -> tuple[Manifest, Plan]:
    """The manifest, without the facts that are known only when all is written, and the plan for the writers."""
    pullback, image = rewritten.pullback.pullback, source.image
    extra_inputs = [source.extra_inputs[place] for place in pullback.used_inputs]
    artifacts = ports.artifacts(
        formats,
        recipe,
        defaults,
        default_temperature(recipe, defaults, pullback.gates) if pullback.uses_temperature else None,
        (source.input_shape[0], "H", "W") if recipe.dynamic_size else source.input_shape,
        pullback.output_shape,
        extra_inputs,
    )
    if rewritten.probe is not None:
        shown = [(gate.site, gate.shape) for gate in rewritten.probe.pullback.gate_outputs]
        artifacts[ports.GATES] = ports.gates(artifacts["pullback.onnx"], shown)
    manifest = Manifest(
        model=source.model,
        recipe=recipe,
        defaults=defaults,
        image=image,
        labels=source.labels if _has_labels(source, pullback.layers) else None,
        gates=pullback.gates,
        extra_inputs=source.extra_inputs,
        layers=pullback.layers,
        artifacts=artifacts,
        versions=_versions(),
        passes=rewritten.pullback.passes,
    )
    plan = Plan(
        recipe=recipe,
        input_defaults=manifest.input_defaults,
        value_range=clamp_range(*image.range, image.margin) if image is not None else (-math.inf, math.inf),
        facts=manifest.file_facts(),
        extra_inputs=tuple(port.name for port in extra_inputs),
        gate_outputs=tuple(port.name for port in artifacts[ports.GATES].outputs) if rewritten.probe else (),
    )
    return manifest, plan


def _write(
    folder: Path,
    rewritten: _Rewritten,
    plan: Plan,
    formats: Sequence[str],
    single_file: bool,
    shard_size: int | None,
    stage: Callable[[str], None],
) -> dict[str, int]:
    """Write the artifacts into `folder`; return how often each pass of `surgeon.runtime.tuning` applied."""
    if "torchscript" in formats:
        stage("write TorchScript")
        write_torchscript(explicit_graph(rewritten.pullback.program), folder, plan)
    if "onnx" not in formats:
        return {}
    stage("write ONNX")
    passes = write_onnx(rewritten.pullback.program, folder, plan)
    if rewritten.probe is not None:
        write_gates(rewritten.probe.program, folder, plan)
    if shard_size is not None or plan.recipe.weights_dtype == "fp16":
        store_again(folder, WEIGHTS, plan.recipe.weights_dtype == "fp16", shard_size)
    if single_file:
        embed_weights(folder)
    return passes


class _Half(Wrapper):
    """A network whose arithmetic is in float16, between inputs and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(copied(network).half())

    def forward(self, x: Tensor, *extra_inputs: Tensor) -> Any:
        halves = [other.half() if other.is_floating_point() else other for other in extra_inputs]
        output = self.wrapped(x.half(), *halves)
        return output.float() if isinstance(output, Tensor) else output  # a layer's is cast where the network is cut


def _has_labels(source: Source, layers: Sequence[Layer]) -> bool:
    """Whether the classes' names are those of the output's channels: a hidden layer's have none."""
    if not layers:
        return True
    return [layer.kind for layer in layers] == ["entry"] and layers[0].shape[:1] == (len(source.labels or ()),)


def _refuse(recipe: Recipe, formats: Sequence[str], shard_size: int | None) -> None:
    """Raise SurgeonError for formats that do not exist, and for choices that do not go together."""
    for name in formats:
        if name not in FORMATS:
            raise SurgeonError(f"there is no format {name!r}", f"Choose {' or '.join(FORMATS)}")
    if recipe.gate_outputs and "onnx" not in formats:
        raise SurgeonError(f"the gates' outputs are an ONNX file, {ports.GATES}", "Add onnx to the formats")
    for_onnx = {
        "weights_dtype": recipe.weights_dtype != "fp32",
        "shard_size": shard_size is not None,
        "scalars": recipe.scalars != "optional",
    }
    useless = [name for name, given in for_onnx.items() if given]
    if useless and "onnx" not in formats:
        raise SurgeonError(f"{useless[0]} is about ONNX files, and none is written", "Add onnx to the formats")
    if not formats:
        raise SurgeonError("no format was asked for", f"Choose from {', '.join(FORMATS)}")


def _versions() -> dict[str, str]:
    from surgeon import __version__

    found = {"surgeon": __version__, "python": platform.python_version()}
    for package in _VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # onnxruntime comes under one of two names
    return found
