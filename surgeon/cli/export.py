"""`surgeon export`: convert, write, verify, report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import surgeon.conversion.gates  # noqa: F401 - Recipe's choices of gates; without torch
from surgeon.bundle.manifest import OPSETS, Defaults, Recipe
from surgeon.bundle.ports import FILES
from surgeon.cli import extra_input_options, options
from surgeon.cli.reports import comparisons
from surgeon.cli.screen import console, print_json, progress, size_text
from surgeon.errors import SurgeonError, VerificationError

if TYPE_CHECKING:
    from surgeon.bundle.folder import Bundle
    from surgeon.bundle.manifest import Comparison

EXAMPLES = """\b
Examples:
  surgeon export efficientnet_lite0
  surgeon export resnet50 --weights IMAGENET1K_V2 -o exported/resnet50
  surgeon export resnet50 --weights random --gate hard -o exported/resnet50-hard
  surgeon export resnet50 --at layer3.2.conv2 -o exported/resnet50-layer3
  surgeon export resnet50 --at layer2 --at layer3 --at fc -o exported/resnet50-layers
  surgeon export efficientnet_lite0 --formats onnx --weights-dtype fp16 --shard-size 20 --scalars required
  surgeon export classifier.onnx --preprocess imagenet
  surgeon export mypackage.models:make --input-shape 3,64,64 --weights trained.pth
  surgeon export mypackage.models:denoiser --input-shape 3,64,64 --extra-input step=:int64"""


BEGIN = {"build the network": 0.02, "rewrite": 0.06, "write TorchScript": 0.3, "write ONNX": 0.35, "verify": 0.45}
"""The share of an export's time before each stage, measured with ResNet18, DenseNet121 and MobileNetV2."""


class Temperature(click.ParamType[tuple[str, float]]):
    """T as ("", T), PATTERN=T as (PATTERN, T)."""

    name = "T|GATES=T"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse `value`, unless it is parsed already."""
        if isinstance(value, tuple):
            return value
        pattern, equals, number = value.rpartition("=")
        if equals and not pattern:
            self.fail(f"{value!r} names no gates. Write T, or GATES=T such as 'layer4.*=0.5'.", param, ctx)
        return pattern, options.number(above=0)(number)


@click.command(cls=options.GroupedCommand, epilog=EXAMPLES)
@click.argument("model", metavar="SOURCE")
@options.group(
    "The network",
    click.option("--weights", metavar="FILE|NAME|random", help="A state dict, a published name, or random[:SEED]."),
    click.option("--input-shape", type=options.SHAPE, help="The shape of one input, without the batch."),
    extra_input_options.described,
    click.option(
        "--dynamic-size", is_flag=True, help="Leave height and width of [C,H,W] inputs free, as the batch is."
    ),
    click.option(
        "--preprocess",
        type=click.Choice(["imagenet", "half", "none"]),
        help="Normalisation that becomes part of the graph.",
    ),
    click.option(
        "--at",
        metavar="LAYER",
        multiple=True,
        help="The layer whose output takes the cotangent: a module, an entry of what the network returns, or a node "
        "(`surgeon inspect SOURCE --show layers` lists them). The bundle ends there. Of a module that "
        "the network calls again, the last call counts. Repeatable: the output then holds the layers' outputs, "
        "flattened, one after the other.  [default: the network's output]",
    ),
)
@options.group(
    "Gates",
    options.field(
        Recipe, "gate", "The factor in the place of a ReLU's 1[z > 0] in the backward pass; hard is the exact gradient."
    ),
    options.field(Recipe, "pool", "Backward of max pooling.  [default: the gate's]"),
    options.field(
        Recipe, "gate_scope", "With modules, ReLUs called as functions keep the hard gate, as in the paper's code."
    ),
    options.field(Recipe, "edges", "Edges of ReLU6, hardtanh and clamp that are softened."),
    click.option(
        "--temperature",
        "temperatures",
        type=Temperature(),
        multiple=True,
        metavar="T|GATES=T",
        help="Default T, or the fixed T of the gates and pools whose module or node has that name or pattern. "
        "Repeatable; the last one counts.  [default: the model's]",
    ),
    options.field(
        Recipe,
        "temperature_input",
        "The input temperature of the artifacts: one T for all, or one for each gate and pool (GATES=T is a default "
        "then).",
    ),
    click.option(
        "--gate-outputs",
        is_flag=True,
        help="Also write gates.onnx: the input of each soft gate and the cotangents there, for surgeon gates and "
        "calibrate.",
    ),
)
@options.group(
    "The ascent",
    options.field(Recipe, "objective", "The quantity that an ascent climbs."),
    options.field(Recipe, "step", "Direction of a step: g/|g|, g/|g|·|x|, or g itself."),
    options.field(Recipe, "norm", "Norm of step and radius."),
    options.field(Defaults, "step_size", "Default step size.", type=options.number(), metavar="A"),
    options.field(Defaults, "radius", "Default radius.", type=options.number(above=0, infinite=True), metavar="E"),
    options.field(Defaults, "steps", "Default number of steps.", type=click.IntRange(min=1)),
    click.option(
        "--margin",
        type=options.number(infinite=True),
        metavar="M",
        default=0.0,
        show_default=True,
        help="How far an ascent may leave the value range; inf for no clamp.",
    ),
)
@options.group(
    "The files",
    click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Default: exported/NAME."),
    click.option(
        "--formats",
        type=options.CommaList(click.Choice(list(FILES)), "FORMAT[,FORMAT]", unique=True),
        default=",".join(FILES),
        show_default=True,
        help="The formats to write.",
    ),
    click.option("--single-file", is_flag=True, help="Put the weights into each ONNX file."),
    options.field(Recipe, "precision", "Precision of the arithmetic."),
    options.field(
        Recipe,
        "weights_dtype",
        "Precision of the weights in the ONNX files: fp16 is half the size, and the arithmetic stays in fp32.",
    ),
    click.option(
        "--shard-size",
        type=click.IntRange(min=1),
        metavar="MB",
        help="Spread the ONNX files' weights over files of this size, for hosts that limit it. A tensor is never cut.",
    ),
    options.field(
        Recipe,
        "scalars",
        "Whether the ONNX files have defaults for temperature, step size, radius and steps. JavaScript's ONNX Runtime "
        "cannot set an input that has one.",
    ),
    options.field(
        Recipe,
        "layout",
        "The host that the ONNX files suit: blocked the layout of ONNX Runtime's CPU kernels, plain a GPU; tuned is "
        "what surgeon.load makes of blocked ones on a CPU, for hosts without it.",
    ),
    options.field(Recipe, "opset", "ONNX operator set.", type=click.IntRange(OPSETS[0], OPSETS[-1])),
)
@options.group(
    "Verification",
    click.option("--no-verify", is_flag=True, help="Do not compare the written files with autograd."),
    click.option(
        "--tolerance", type=options.number(above=0), metavar="E",
        help="Relative L2 error allowed.  [default: by quantity]",
    ),
)  # fmt: skip
@options.silent
@options.as_json
def command(model: str, output: Path | None, no_verify: bool, quiet: bool, as_json: bool, **choices: Any) -> None:
    """Convert SOURCE, write its bundle, and verify what was written.

    SOURCE is a name (`surgeon models`), `package.module:factory`, a callable without arguments that returns a module,
    or a file: an ONNX network, or a program that torch.export saved (.pt2); FILE:OUTPUT names one of several outputs.
    The bundle holds the pullback and the ascents as ONNX and TorchScript files. They are run and compared with
    PyTorch's autograd on other inputs, batches and temperatures than they were traced with; over tolerance, the command
    exits with 3 and leaves no bundle.
    """
    started = time.perf_counter()
    lines: list[Comparison] = []
    artifacts = sum(len(FILES[kind]) for kind in choices["formats"]) + choices["gate_outputs"]
    try:
        with progress(quiet) as bar:
            task = bar.add_task("load torch", total=1)

            def stage(name: str) -> None:
                bar.update(task, description=name, completed=BEGIN[name])

            def report(line: Comparison) -> None:
                lines.append(line)
                share = len({line.artifact for line in lines} - {line.artifact}) / artifacts
                bar.update(task, completed=BEGIN["verify"] + share * (1 - BEGIN["verify"]))

            bundle = _export(model, output, not no_verify, choices, stage, report)
    except VerificationError:
        if as_json:
            print_json({"bundle": None, "model": model, "passed": False, "verification": comparisons.facts(lines)})
        elif lines:
            console(error=True).print(comparisons.table(lines))
        raise
    if as_json:
        print_json(_facts(bundle, time.perf_counter() - started))
    elif not quiet:
        _print(bundle, time.perf_counter() - started)


def _export(
    model: str,
    output: Path | None,
    check: bool,
    choices: dict[str, Any],
    stage: Callable[[str], None],
    report: Callable[[Comparison], None],
) -> Bundle:
    """Turn the command's options into the arguments of `surgeon.exporting.export`, and call it."""
    try:
        from surgeon.exporting import export
        from surgeon.network.sources import resolve
    except ImportError as error:
        missing = error.name or "torch"
        raise SurgeonError(f"{missing} is not installed, and converting needs it", options.CONVERT) from error

    stage("build the network")
    source = resolve(
        model,
        weights=choices["weights"],
        input_shape=choices["input_shape"],
        preprocess=choices["preprocess"],
        input=choices["input"],
        extra_inputs=dict(choices["extra_input"]),
    )
    if source.image is not None:
        source = dataclasses.replace(source, image=dataclasses.replace(source.image, margin=choices["margin"]))
    named = {field.name: choices[field.name] for field in dataclasses.fields(Recipe) if field.name in choices}
    fixed = tuple((pattern, value) for pattern, value in choices["temperatures"] if pattern)
    shared = [value for pattern, value in choices["temperatures"] if not pattern]
    recipe = Recipe(**{**named, "pool": choices["pool"] or "", "temperatures": fixed})
    defaults = Defaults(
        temperature=shared[-1] if shared else source.temperature,
        step_size=choices["step_size"],
        radius=choices["radius"],
        steps=choices["steps"],
    )
    return export(
        source,
        output or Path("exported") / source.model.name,
        recipe,
        defaults,
        formats=choices["formats"],
        single_file=choices["single_file"],
        shard_size=choices["shard_size"],
        check=check,
        tolerance=choices["tolerance"],
        stage=stage,
        report=report,
    )


def _print(bundle: Bundle, seconds: float) -> None:
    """Print the verification report, the files, and the next commands."""
    manifest, screen = bundle.manifest, console()
    if manifest.verification:
        screen.print(comparisons.table(manifest.verification))
    screen.print(comparisons.summary(manifest.verification))
    gates = sum(gate.kind == "gate" for gate in manifest.gates)
    pools = len(manifest.gates) - gates
    screen.print(
        f"{manifest.model.name}, weights {manifest.model.weights}: {gates} gates, {pools} max pools, "
        f"{manifest.recipe.gate} gates, T {manifest.defaults.temperature:g}"
    )
    for name, file in manifest.files.items():
        screen.print(f"  {name:<20}{size_text(file.bytes):>10}")
    screen.print(f"[bold]{bundle.path}[/] in {seconds:.0f} s", soft_wrap=True)
    if manifest.image is not None and "ascent_step.onnx" in manifest.files:
        screen.print(f"\nNext: surgeon run {bundle.path} PHOTO\n      surgeon inspect {bundle.path}", soft_wrap=True)


def _facts(bundle: Bundle, seconds: float) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "model": manifest.model.name,
        "weights": manifest.model.weights,
        "gates": len(manifest.gates),
        "temperature": manifest.defaults.temperature,
        "files": {name: file.bytes for name, file in manifest.files.items()},
        "passed": all(line.passed for line in manifest.verification) if manifest.verification else None,
        "verification": comparisons.facts(manifest.verification),
        "seconds": round(seconds, 2),
    }
