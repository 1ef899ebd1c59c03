"""`surgeon inspect`: what a bundle or an ONNX file takes, gives and holds."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options, others
from surgeon.cli.export import Shape

if TYPE_CHECKING:
    from rich.console import Console

    from surgeon.artifacts.manifest import Manifest, Port
    from surgeon.inspection import FileReport, Inspection


EXAMPLES = """\b
Examples:
  surgeon inspect exported/lite0 --gates
  surgeon inspect exported/lite0/pullback.onnx --json
  surgeon inspect resnet50 --layers
  surgeon inspect mypackage.models:make --layers --input-shape 3,64,64"""


@click.command("inspect", epilog=EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH|MODEL")
@click.option("--gates", is_flag=True, help="List every gate and pool.")
@click.option("--classes", is_flag=True, help="List every class.")
@click.option("--layers", is_flag=True, help="List what `surgeon export MODEL --at` can name (needs torch).")
@click.option("--input-shape", type=Shape(), help="With --layers: one input's shape, without the batch.")
@others.described
@options.as_json
def command(
    path: Path,
    gates: bool,
    classes: bool,
    layers: bool,
    input_shape: tuple[int, ...] | None,
    input: str | None,
    also: tuple[others.Stated, ...],
    as_json: bool,
) -> None:
    """Describe the bundle or .onnx file at PATH: inputs, outputs, gates, operators, sizes, verification.

    Checks a bundle's files against its manifest; loads no weights and runs nothing. With --layers it describes a MODEL:
    its modules, the entries of what it returns, and the gates that are functions, with the shape of their output and
    the gates inside them.
    """
    from surgeon.cli import screen

    if layers:
        _print_layers(str(path), input_shape, input, also, as_json)
        return
    if input_shape is not None:
        raise click.UsageError("--input-shape goes with --layers.")
    from surgeon.inspection import inspect

    inspection = inspect(path)
    if as_json:
        screen.print_json(inspection.to_json())
        return
    console = screen.console()
    manifest = inspection.manifest
    if manifest is not None:
        _print_origin(console, manifest)
    for file in inspection.files:
        _print_file(console, file)
    if manifest is not None:
        _print_gates(console, manifest, every=gates)
        if manifest.files:  # a bundle: a lone file does not know how its verification went
            _print_verification(console, manifest)
        if classes:
            _print_classes(console, manifest)
    _print_sizes(console, inspection)


def _print_layers(
    model: str,
    input_shape: tuple[int, ...] | None,
    input: str | None,
    also: tuple[others.Stated, ...],
    as_json: bool,
) -> None:
    import dataclasses

    from surgeon.cli import screen

    source, example = options.network(model, input_shape, input, also)
    from surgeon.outline import layers

    found = layers(source.module, example)
    if as_json:
        screen.print_json({"model": model, "layers": [dataclasses.asdict(layer) for layer in found]})
        return
    rows = [
        (layer.name, layer.kind, _shape_text(layer.shape), layer.gates, layer.calls if layer.calls > 1 else "")
        for layer in found
    ]
    columns = ("layer", "kind", "output", "gates", "calls")
    screen.console().print(_table("", columns, rows, right=("gates", "calls")))


def _shape_text(shape: Sequence[int | str] | None) -> str:
    return "not one tensor" if shape is None else "[" + ", ".join(map(str, shape)) + "]"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="bold") if title else None
    headed = any(column.strip() for column in columns)
    shape = box.SIMPLE_HEAD if headed else None
    table = Table(title=heading, title_justify="left", box=shape, pad_edge=False, show_header=headed)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(str(item)) for item in row])
    return table


def _print_origin(console: Console, manifest: Manifest) -> None:
    model, recipe, image = manifest.model, manifest.recipe, manifest.image
    rows = [
        ("model", f"{model.name}, {model.parameters:,} parameters"),
        ("source", model.source),
        ("weights", f"{model.weights} (licence: {model.licence})"),
        ("gates", f"{recipe.gate}, pools {recipe.pool}, scope {recipe.gate_scope}, edges {recipe.edges}"),
        ("cotangent at", ", ".join(recipe.at) or "the network's output"),
        ("ascent", f"objective {recipe.objective}, step {recipe.step}, norm {recipe.norm}"),
        ("precision", f"{recipe.precision}, opset {recipe.opset}"),
    ]
    if image is not None:
        size = f"{image.channels} x {image.height} x {image.width}, values {image.range[0]:g} to {image.range[1]:g}"
        size = f"any height and width, by default {size}" if recipe.dynamic_size else size
        rows.append(("photos", f"{size}; shorter side to {image.resize}, centre crop, {image.interpolation}"))
    if manifest.labels or not recipe.at:
        rows.append(("classes", str(len(manifest.labels)) + " with names" if manifest.labels else "without names"))
    if manifest.passes:
        applied = [f"{name.replace('_', ' ')} {count}" for name, count in manifest.passes.items() if count]
        rows.append(("passes", ", ".join(applied) or "none applied"))
    if manifest.versions:  # a lone file does not know them
        rows.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
    console.print(_table("", ("", " "), rows))
    console.print()
    if len(manifest.layers) > 1:
        slices = [(one.name, _shape_text(one.shape), one.start, one.start + one.size) for one in manifest.layers]
        columns = ("layer", "its own output", "from", "to")
        console.print(_table("layers in the output", columns, slices, right=("from", "to")))


def _print_file(console: Console, file: FileReport) -> None:
    from surgeon.cli.screen import size_text

    if not file.inputs and not file.outputs:
        return
    rows = [("in", *_port(port)) for port in file.inputs] + [("out", *_port(port)) for port in file.outputs]
    kind = f"{file.format}, opset {file.opset}" if file.opset else file.format
    heading = f"{file.name} ({kind}, {size_text(file.bytes)})"
    console.print(_table(heading, ("", "name", "dtype", "shape", "default", "meaning"), rows))
    for role, counts in file.operators.items():
        listed = ", ".join(f"{operator} {count}" for operator, count in list(counts.items())[:12])
        more = ", …" if len(counts) > 12 else ""
        console.print(f"{role}: {sum(counts.values())} operators ({listed}{more})", style="dim", markup=False)
    if file.operators:
        console.print()


def _port(port: Port) -> tuple[str, str, str, str, str]:
    values = port.default if isinstance(port.default, tuple) else () if port.default is None else (port.default,)
    default = ", ".join(dict.fromkeys(f"{value:g}" for value in values))
    return port.name, port.dtype, _shape_text(port.shape), default, port.meaning


def _print_gates(console: Console, manifest: Manifest, every: bool) -> None:
    if not manifest.gates:
        console.print("no gates and no pools\n")
        return
    fixed = "{:g}" if manifest.recipe.temperature_input == "scalar" else "input ({:g})"
    shared = "input" if any(gate.temperature is None for gate in manifest.gates) else ""

    def softness(rule: str, temperature: float | None) -> str:
        return "" if rule != "soft" else shared if temperature is None else fixed.format(temperature)

    if every:
        rows = [
            (one.module or "(root)", one.op, one.kind, one.rule, softness(one.rule, one.temperature), list(one.shape))
            for one in manifest.gates
        ]
        console.print(_table("gates and pools", ("module", "operator", "kind", "rule", "T", "shape"), rows))
        return
    counts = collections.Counter((gate.kind, gate.op, gate.rule, gate.temperature) for gate in manifest.gates)
    grouped = [(count, kind, op, rule, softness(rule, value)) for (kind, op, rule, value), count in counts.items()]
    console.print(_table("gates and pools", ("count", "kind", "operator", "rule", "T"), grouped, right=("count",)))


def _print_verification(console: Console, manifest: Manifest) -> None:
    if not manifest.verification:
        console.print("not verified: exported with --no-verify\n", style="yellow")
        return
    rows = [
        (line.artifact, line.quantity, line.condition, f"{line.error:.1e}", f"{line.tolerance:.0e}", line.provider)
        for line in manifest.verification
    ]
    failed = sum(not line.passed for line in manifest.verification)
    verdict = f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} within tolerance"
    columns = ("artifact", "quantity", "condition", "error", "tolerance", "provider")
    console.print(_table(f"verification at export: {verdict}", columns, rows, right=("error", "tolerance")))


def _print_classes(console: Console, manifest: Manifest) -> None:
    rows = list(enumerate(manifest.labels or ()))
    console.print(_table("classes", ("index", "label"), rows, right=("index",)))


def _print_sizes(console: Console, inspection: Inspection) -> None:
    from surgeon.cli.screen import size_text

    files = ", ".join(f"{file.name} {size_text(file.bytes)}" for file in inspection.files)
    console.print(f"{size_text(inspection.bytes)} in all: {files}", markup=False)
