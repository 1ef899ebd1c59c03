"""The sections of `surgeon inspect` for a bundle or an ONNX file. Torch-free."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from surgeon.analysis.inspect.grouping import Pair, count, layers, named
from surgeon.analysis.inspect.inspection import SECTIONS, FileReport, Inspection, nothing_fits, operators
from surgeon.analysis.inspect.structure import ROLES, UNMARKED, figure_text, total
from surgeon.bundle.manifest import GateSite, Manifest, Port
from surgeon.cli.reports.tables import bytes_text, counts_text, shape_text, table
from surgeon.cli.screen import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

ROOT = "(root)"


class FileSections:
    """What there is to show of a bundle or an ONNX file; with a pattern, of its layers, nodes and gates those that fit.

    Raises SurgeonError from `data` and `tables` where nothing fits.
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
        found = self.inspection
        if section == "overview":
            return {"bytes": found.bytes, "facts": found.facts, "files": [_summary(file) for file in found.files]}
        if section == "ports":
            return {
                file.name: {end: [dataclasses.asdict(port) for port in getattr(file, end)] for end in _ENDS}
                for file in found.files
                if file.format
            }
        if section == "layers":
            return [dataclasses.asdict(layer) for layer in layers(found.pairs(self.pattern))]
        if section == "nodes":
            return [
                {**dataclasses.asdict(pair), "shape": pair.shape, "backward_shape": pair.backward_shape}
                for pair in found.pairs(self.pattern)
            ]
        if section == "gates":
            return [dataclasses.asdict(gate) for gate in self._fitting()]
        if section == "operators":
            listed = {file.name: operators(file) for file in found.files if file.structure}
            return {name: [dataclasses.asdict(one) for one in counted] for name, counted in listed.items()}
        assert found.manifest is not None
        if section == "classes":
            return list(found.manifest.labels or ())
        return [{**dataclasses.asdict(line), "passed": line.passed} for line in found.manifest.verification]

    def tables(self, section: str) -> Iterable[RenderableType]:
        """A section for people."""
        shown: Iterable[RenderableType] = getattr(self, f"_{section}")()
        return shown

    def _overview(self) -> Iterable[RenderableType]:
        manifest = self.inspection.manifest
        rows: list[tuple[str, Any]] = _origin(manifest) if manifest is not None else []
        file = self.inspection.pictured
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
        yield table("", ("", " "), rows)
        yield ""
        if manifest is not None and len(manifest.layers) > 1:
            slices = [(one.name, shape_text(one.shape), one.start, one.start + one.size) for one in manifest.layers]
            columns = ("layer", "its own output", "from", "to")
            yield table("layers in the output", columns, slices, right=("from", "to"))

    def _ports(self) -> Iterable[RenderableType]:
        for file in self.inspection.files:
            if file.format:
                rows = [("in", *_port(port)) for port in file.inputs] + [("out", *_port(port)) for port in file.outputs]
                kind = f"{file.format}, opset {file.opset}" if file.opset else file.format
                heading = f"{file.name} ({kind}, {size_text(file.bytes)})"
                yield table(heading, ("", "name", "dtype", "shape", "default", "meaning"), rows, spare=("meaning",))

    def _layers(self) -> Iterable[RenderableType]:
        found = layers(self.inspection.pairs(self.pattern))
        rows: list[tuple[Any, ...]] = [
            (
                one.module or ROOT, counts_text(one.operators, 3), shape_text(one.shape), figure_text(one.parameters),
                figure_text(one.multiply_adds), figure_text(one.backward_multiply_adds), bytes_text(one.bytes),
                one.gates or "",
            )
            for one in found
        ]  # fmt: skip
        sums = (total(one.multiply_adds for one in found), total(one.backward_multiply_adds for one in found))
        parameters, memory = sum(one.parameters for one in found), total(one.bytes for one in found)
        gates = sum(one.gates for one in found)
        rows.append(
            ("total", "", "", figure_text(parameters), *map(figure_text, sums), bytes_text(memory), gates or "")
        )
        columns = ["module", "operators", "output", "parameters", "multiply-adds", "backward", "memory", "gates"]
        if not any(one.backward_multiply_adds for one in found):
            columns, rows = columns[:5] + columns[6:7], [(*row[:5], *row[6:7]) for row in rows]
        yield table("layers", columns, rows, columns[3:], spare=("operators", "gates", "memory", "backward"))

    def _nodes(self) -> Iterable[RenderableType]:
        found = self.inspection.pairs(self.pattern)
        rows: list[tuple[Any, ...]] = [
            (
                pair.module or ROOT, pair.source, counts_text(count(pair.forward), 4), shape_text(pair.shape),
                _rule(pair), counts_text(count(pair.backward), 6),
            )
            for pair in found
        ]  # fmt: skip
        columns = ["module", "node", "forward", "output", "rule", "backward"]
        if not any(pair.backward for pair in found):
            columns, rows = columns[:4], [row[:4] for row in rows]
        yield table("nodes", columns, rows, spare=("output", "node"))

    def _fitting(self) -> tuple[GateSite, ...]:
        found = [gate for gate in self.inspection.gates if named(self.pattern, gate.module, [gate.node])]
        if self.pattern is not None and not found:
            raise nothing_fits(self.pattern, [gate.module or gate.node for gate in self.inspection.gates])
        return tuple(found)

    def _gates(self) -> Iterable[RenderableType]:
        assert self.inspection.manifest is not None
        soft = softness(self.inspection.manifest)
        rows = [
            (one.module or ROOT, one.node, one.op, one.kind, one.rule, soft(one), shape_text(one.shape))
            for one in self._fitting()
        ]
        columns = ("module", "node", "operator", "kind", "rule", "T", "shape")
        yield table("gates and pools", columns, rows, spare=("operator", "shape", "node"))

    def _operators(self) -> Iterable[RenderableType]:
        from surgeon.analysis.inspect.kernels import PROVIDERS

        file = self.inspection.pictured
        assert file is not None
        found = operators(file)
        roles = [role for role in (*ROLES, UNMARKED) if any(role in one.counts for one in found)]
        known = [name for name in PROVIDERS if any(one.providers[name] for one in found)]
        headings = roles if roles != [UNMARKED] else ["count"]
        rows: list[tuple[Any, ...]] = [
            (
                one.operator,
                *(one.counts.get(role, "") for role in roles),
                *(one.providers[name] or "?" for name in known),
            )
            for one in found
        ]
        title = f"operators of {file.name}"
        yield table(title, ("operator", *headings, *known), rows, right=headings)

    def _classes(self) -> Iterable[RenderableType]:
        assert self.inspection.manifest is not None
        yield table("classes", ("index", "label"), enumerate(self.inspection.manifest.labels or ()), right=("index",))

    def _verification(self) -> Iterable[RenderableType]:
        from rich.text import Text

        manifest = self.inspection.manifest
        assert manifest is not None
        if not manifest.verification:
            yield Text("not verified: exported with --no-verify\n", style="yellow")
            return
        rows = [
            (line.artifact, line.quantity, line.condition, f"{line.error:.1e}", f"{line.tolerance:.0e}", line.provider)
            for line in manifest.verification
        ]
        failed = sum(not line.passed for line in manifest.verification)
        verdict = f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} within tolerance"
        columns = ("artifact", "quantity", "condition", "error", "tolerance", "provider")
        yield table(f"verification at export: {verdict}", columns, rows, right=("error", "tolerance"))


_ENDS = ("inputs", "outputs")


def softness(manifest: Manifest) -> Callable[[GateSite], str]:
    """How the temperature of a gate of `manifest` reads: fixed, or an input's with its default."""
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
    """What there is to say of a file in figures, as JSON values."""
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


def _rule(pair: Pair) -> str:
    return f"{pair.gate.rule} {pair.gate.kind}" if pair.gate is not None else ""
