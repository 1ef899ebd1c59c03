"""The sections of `surgeon inspect` for a bundle or an ONNX file. Torch-free."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from surgeon.analysis.inspect.grouping import count, layers, named, summed
from surgeon.analysis.inspect.inspection import SECTIONS, FileReport, Inspection, OperatorCount, nothing_fits, operators
from surgeon.analysis.inspect.structure import ROLES, UNMARKED, figure_text
from surgeon.bundle.manifest import GateSite, Manifest, Port
from surgeon.cli.reports.tables import Column, bytes_text, cells, counts_text, facts_table, shape_text, table_of
from surgeon.cli.screen import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

ROOT = "(root)"

SLICES = (
    Column("layer", lambda layer: layer.name),
    Column("its own output", lambda layer: shape_text(layer.shape)),
    Column("from", lambda layer: layer.start, right=True),
    Column("to", lambda layer: layer.start + layer.size, right=True),
)
PORTS = cells(("", "name", "dtype", "shape", "default", "meaning"), spare=("meaning",))
LAYERS = (
    Column("module", lambda layer: layer.module or ROOT),
    Column("operators", lambda layer: counts_text(layer.operators, 3), spare=1),
    Column("output", lambda layer: shape_text(layer.shape)),
    Column("parameters", lambda layer: figure_text(layer.parameters), right=True),
    Column("multiply-adds", lambda layer: figure_text(layer.multiply_adds), right=True),
    Column("backward", lambda layer: figure_text(layer.backward_multiply_adds), right=True, spare=4),
    Column("memory", lambda layer: bytes_text(layer.bytes), right=True, spare=3),
    Column("gates", lambda layer: layer.gates or "", right=True, spare=2),
)
NODES = (
    Column("module", lambda pair: pair.module or ROOT),
    Column("node", lambda pair: pair.source, spare=2),
    Column("forward", lambda pair: counts_text(count(pair.forward), 4)),
    Column("output", lambda pair: shape_text(pair.shape), spare=1),
    Column("rule", lambda pair: f"{pair.gate.rule} {pair.gate.kind}" if pair.gate is not None else ""),
    Column("backward", lambda pair: counts_text(count(pair.backward), 6)),
)
OF_A_PULLBACK = ("rule", "backward", "gates")
"""Columns of layers and nodes that a file without a backward pass has nothing for."""

CLASSES = cells(("index", "label"), right=("index",))
VERIFICATION = (
    Column("artifact", lambda comparison: comparison.artifact),
    Column("quantity", lambda comparison: comparison.quantity),
    Column("condition", lambda comparison: comparison.condition),
    Column("error", lambda comparison: f"{comparison.error:.1e}", right=True),
    Column("tolerance", lambda comparison: f"{comparison.tolerance:.0e}", right=True),
    Column("provider", lambda comparison: comparison.provider),
)


class FileSections:
    """The sections of a bundle or an ONNX file; with a pattern, the layers, nodes and gates that match it.

    `data` and `tables` raise SurgeonError where nothing matches.
    """

    def __init__(self, inspection: Inspection, pattern: str | None) -> None:
        self.inspection, self.pattern = inspection, pattern
        manifest, is_onnx = inspection.manifest, inspection.pictured is not None
        there = {"overview": True, "ports": True, "layers": is_onnx, "nodes": is_onnx, "operators": is_onnx}
        there["gates"] = manifest is not None
        there["classes"] = bool(manifest and manifest.labels)
        there["verification"] = bool(manifest and manifest.files)  # a lone file does not know how it went
        self.there = tuple(name for name in SECTIONS if there[name])

    def data(self, section: str) -> Any:
        """A section as JSON values."""
        inspection = self.inspection
        if section == "overview":
            files = [_summary(file) for file in inspection.files]
            return {"bytes": inspection.bytes, "facts": inspection.facts, "files": files}
        if section == "ports":
            return {
                file.name: {end: [dataclasses.asdict(port) for port in getattr(file, end)] for end in _ENDS}
                for file in inspection.files
                if file.format
            }
        if section == "layers":
            return [dataclasses.asdict(layer) for layer in layers(inspection.pairs(self.pattern))]
        if section == "nodes":
            return [
                {**dataclasses.asdict(pair), "shape": pair.shape, "backward_shape": pair.backward_shape}
                for pair in inspection.pairs(self.pattern)
            ]
        if section == "gates":
            return [dataclasses.asdict(gate) for gate in self._matching_gates()]
        if section == "operators":
            counts = {file.name: operators(file) for file in inspection.files if file.is_onnx}
            return {name: [dataclasses.asdict(count) for count in listed] for name, listed in counts.items()}
        assert inspection.manifest is not None
        if section == "classes":
            return list(inspection.manifest.labels or ())
        return [{**dataclasses.asdict(line), "passed": line.passed} for line in inspection.manifest.verification]

    def tables(self, section: str) -> Iterable[RenderableType]:
        """A section for people."""
        shown: Iterable[RenderableType] = getattr(self, f"_{section}")()
        return shown

    def _overview(self) -> Iterable[RenderableType]:
        manifest, file = self.inspection.manifest, self.inspection.pictured
        rows: list[tuple[str, Any]] = _origin(manifest) if manifest is not None else []
        if file is not None and manifest is None:
            rows = [("file", file.name), ("made by", file.producer or "?"), ("opset", file.opset)]
            rows += [(key, value[:200]) for key, value in file.metadata.items()]
        if file is not None and file.structure is not None:
            structure = file.structure
            rows.append(("parameters", f"{structure.parameters:,} numbers in {file.name}"))
            sample = "one sample" if structure.batch == 1 else f"the file's batch of {structure.batch}"
            for part in ROLES:
                nodes = [node for node in structure.nodes if node.part == part]
                if nodes:
                    work, memory = structure.multiply_adds(part), structure.bytes(part)
                    costs = f"{figure_text(work) or 0} multiply-adds, {bytes_text(memory)} of activations"
                    rows.append((part, f"{len(nodes)} nodes, {costs} for {sample}"))
        files = ", ".join(f"{file.name} {size_text(file.bytes)}" for file in self.inspection.files)
        rows.append(("size", f"{size_text(self.inspection.bytes)} in all: {files}"))
        yield facts_table(rows)
        yield ""
        if manifest is not None and len(manifest.layers) > 1:
            yield table_of("layers in the output", SLICES, manifest.layers)

    def _ports(self) -> Iterable[RenderableType]:
        for file in self.inspection.files:
            if file.format:
                rows = [("in", *_port(port)) for port in file.inputs] + [("out", *_port(port)) for port in file.outputs]
                kind = f"{file.format}, opset {file.opset}" if file.opset else file.format
                yield table_of(f"{file.name} ({kind}, {size_text(file.bytes)})", PORTS, rows)

    def _layers(self) -> Iterable[RenderableType]:
        shares = layers(self.inspection.pairs(self.pattern))
        columns = _columns(LAYERS, any(share.backward_multiply_adds for share in shares))
        yield table_of("layers", columns, [*shares, summed("total", shares)])

    def _nodes(self) -> Iterable[RenderableType]:
        pairs = self.inspection.pairs(self.pattern)
        yield table_of("nodes", _columns(NODES, any(pair.backward for pair in pairs)), pairs)

    def _matching_gates(self) -> tuple[GateSite, ...]:
        gates = self.inspection.gates
        matching = tuple(gate for gate in gates if named(self.pattern, gate.module, [gate.node]))
        if self.pattern is not None and not matching:
            raise nothing_fits(self.pattern, [gate.module or gate.node for gate in gates])
        return matching

    def _gates(self) -> Iterable[RenderableType]:
        assert self.inspection.manifest is not None
        columns = (
            Column("module", lambda gate: gate.module or ROOT),
            Column("node", lambda gate: gate.node, spare=3),
            Column("operator", lambda gate: gate.op, spare=1),
            Column("kind", lambda gate: gate.kind),
            Column("rule", lambda gate: gate.rule),
            Column("T", softness(self.inspection.manifest)),
            Column("shape", lambda gate: shape_text(gate.shape), spare=2),
        )
        yield table_of("gates and pools", columns, self._matching_gates())

    def _operators(self) -> Iterable[RenderableType]:
        from surgeon.analysis.inspect.kernels import PROVIDERS

        file = self.inspection.pictured
        assert file is not None
        counts = operators(file)
        roles = [role for role in (*ROLES, UNMARKED) if any(role in count.counts for count in counts)]
        known = [name for name in PROVIDERS if any(count.providers[name] for count in counts)]
        columns = (
            Column("operator", lambda count: count.operator),
            *(Column("count" if roles == [UNMARKED] else role, _count_of(role), True) for role in roles),
            *(Column(name, _support_by(name)) for name in known),
        )
        yield table_of(f"operators of {file.name}", columns, counts)

    def _classes(self) -> Iterable[RenderableType]:
        assert self.inspection.manifest is not None
        yield table_of("classes", CLASSES, enumerate(self.inspection.manifest.labels or ()))

    def _verification(self) -> Iterable[RenderableType]:
        from rich.text import Text

        manifest = self.inspection.manifest
        assert manifest is not None
        if not manifest.verification:
            yield Text("not verified: exported with --no-verify\n", style="yellow")
            return
        failed = sum(not comparison.passed for comparison in manifest.verification)
        count = len(manifest.verification)
        verdict = f"{failed} of {count} failed" if failed else f"all {count} within tolerance"
        yield table_of(f"verification at export: {verdict}", VERIFICATION, manifest.verification)


_ENDS = ("inputs", "outputs")


def _columns(columns: tuple[Column, ...], pulled_back: bool) -> tuple[Column, ...]:
    return columns if pulled_back else tuple(column for column in columns if column.heading not in OF_A_PULLBACK)


def softness(manifest: Manifest) -> Callable[[GateSite], str]:
    """The temperature of a gate of `manifest` as text: a fixed number, or an input with its default."""
    fixed = manifest.recipe.temperature_input == "scalar"

    def text(gate: GateSite) -> str:
        if not gate.soft:
            return ""
        if fixed and gate.temperature is not None:
            return f"{gate.temperature:g}"
        default = manifest.defaults.temperature if gate.temperature is None else gate.temperature
        return f"input ({default:g})"

    return text


def _summary(file: FileReport) -> dict[str, Any]:
    """Sizes and counts of a file, as JSON values."""
    facts: dict[str, Any] = {"name": file.name, "bytes": file.bytes, "format": file.format}
    if file.structure is None:
        return facts
    structure = file.structure
    parts = {
        part: {
            "nodes": sum(node.part == part for node in structure.nodes),
            "multiply_adds": structure.multiply_adds(part),
            "bytes": structure.bytes(part),
        }
        for part in ROLES
    }
    known = {"opset": file.opset, "producer": file.producer, "metadata": file.metadata}
    return {**facts, **known, "parameters": structure.parameters, "batch": structure.batch, **parts}


def _origin(manifest: Manifest) -> list[tuple[str, Any]]:
    model, recipe, image = manifest.model, manifest.recipe, manifest.image
    soft = softness(manifest)
    kinds = collections.Counter((gate.kind, gate.rule, soft(gate)) for gate in manifest.gates)
    listed = [
        f"{number} {rule} {kind}{'s' if number > 1 else ''}{f', T {at}' if at else ''}"
        for (kind, rule, at), number in kinds.items()
    ]
    stored = "" if recipe.weights_dtype == recipe.precision else f", weights stored in {recipe.weights_dtype}"
    rows = [
        ("model", f"{model.name}, {model.parameters:,} parameters"),
        ("source", model.source),
        ("weights", f"{model.weights} (licence: {model.licence})"),
        ("gates", "; ".join(listed) or "none"),
        ("rules", f"gates {recipe.gate}, pools {recipe.pool}, scope {recipe.gate_scope}, edges {recipe.edges}"),
        ("cotangent at", ", ".join(recipe.at) or "the network's output"),
        ("ascent", f"objective {recipe.objective}, step {recipe.step}, norm {recipe.norm}"),
        ("precision", f"{recipe.precision}{stored}, opset {recipe.opset}"),
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
    return rows


def _port(port: Port) -> tuple[str, str, str, str, str]:
    values = port.default if isinstance(port.default, tuple) else () if port.default is None else (port.default,)
    default = ", ".join(dict.fromkeys(f"{value:g}" for value in values))
    return port.name, port.dtype, shape_text(port.shape), default, port.meaning


def _count_of(role: str) -> Callable[[OperatorCount], object]:
    return lambda count: count.counts.get(role, "")


def _support_by(provider: str) -> Callable[[OperatorCount], object]:
    return lambda count: count.providers[provider] or "?"
