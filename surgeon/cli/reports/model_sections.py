"""The sections of `surgeon inspect` for a network that is not exported yet; this needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from surgeon.analysis.inspect.structure import figure_text
from surgeon.cli.reports.tables import Column, bytes_text, cells, facts_table, shape_text, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from surgeon.analysis.inspect.convertibility import ConvertibilityReport
    from surgeon.network.sources import Samples, Source

ROOT = "(root)"

PORTS = cells(("", "name", "dtype", "shape"))
LAYERS = (
    Column("layer", lambda layer: layer.name),
    Column("kind", lambda layer: layer.kind, spare=3),
    Column("output", lambda layer: shape_text(layer.shape, "not one tensor")),
    Column("parameters", lambda layer: "" if layer.parameters is None else figure_text(layer.parameters), right=True),
    Column(
        "multiply-adds",
        lambda layer: "" if layer.multiply_adds is None else figure_text(layer.multiply_adds),
        right=True,
    ),
    Column("memory", lambda layer: "" if layer.bytes is None else bytes_text(layer.bytes), right=True, spare=2),
    Column("gates", lambda layer: layer.gates or "", right=True),
    Column("calls", lambda layer: layer.calls if layer.calls > 1 else "", right=True, spare=1),
)
NODES = (
    Column("module", lambda node: node.module or ROOT),
    Column("node", lambda node: node.name),
    Column("forward", lambda node: node.operator),
    Column("output", lambda node: shape_text(node.shape)),
)
GATES = (
    Column("module", lambda gate: gate.module or ROOT),
    Column("node", lambda gate: gate.name, spare=2),
    Column("operator", lambda gate: gate.operator, spare=1),
    Column("kind", lambda gate: gate.kind),
    Column("output", lambda gate: shape_text(gate.shape)),
)
OPERATORS = (
    Column("operator", lambda treated: treated.operator),
    Column("count", lambda treated: len(treated.places), right=True),
    Column("treatment", lambda treated: treated.treatment),
)
CLASSES = cells(("index", "label"), right=("index",))


class ModelSections:
    """The sections of a network, each computed when it is asked for; with a pattern, the layers and nodes that match.

    `example` is two samples of what the network takes. `data` and `tables` raise SurgeonError where nothing matches the
    pattern or the network does not take `example`, and ConversionError where a section needs a recording and
    torch.export has none.
    """

    def __init__(self, name: str, source: Source, example: Samples, pattern: str | None) -> None:
        from surgeon.analysis.inspect.model_summary import ModelSummary

        self.name, self.source, self.example, self.pattern = name, source, example, pattern
        self.summary = ModelSummary(source.module, example)
        sections = ["overview", "ports", "layers", "nodes", "gates", "operators"]
        self.there = tuple(sections + (["classes"] if source.labels else []))

    def data(self, section: str) -> Any:
        """A section as JSON values."""
        if section == "overview":
            counts = {"parameters": self.summary.parameters, "multiply_adds": self.summary.multiply_adds}
            image = dataclasses.asdict(self.source.image) if self.source.image is not None else None
            return {"model": dataclasses.asdict(self.source.model), "image": image, **counts}
        if section == "ports":
            extra = [dataclasses.asdict(port) for port in self.source.extra_inputs]
            first = {"name": "input", "dtype": "float32", "shape": ["N", *self.source.input_shape]}
            return {"inputs": [first, *extra], "outputs": self.summary.outputs}
        if section == "operators":
            return self._convertibility().to_json()["operators"]
        if section == "classes":
            return list(self.source.labels or ())
        rows = {"layers": self._matching_layers, "nodes": self._matching_nodes, "gates": self._matching_gates}[section]
        return [dataclasses.asdict(row) for row in rows()]

    def tables(self, section: str) -> Iterable[RenderableType]:
        """A section for people."""
        shown: Iterable[RenderableType] = getattr(self, f"_{section}")()
        return shown

    def _matching(self, rows: Iterable[Any], module: str) -> list[Any]:
        """The rows that match the pattern: by name, or by the module that the attribute `module` holds."""
        from surgeon.analysis.inspect.grouping import named
        from surgeon.analysis.inspect.inspection import nothing_fits

        candidates = list(rows)
        matching = [row for row in candidates if named(self.pattern, getattr(row, module), [row.name])]
        if self.pattern is not None and not matching:
            raise nothing_fits(self.pattern, [getattr(row, module) or row.name for row in candidates])
        return matching

    def _matching_layers(self) -> list[Any]:
        return self._matching(self.summary.layers, "name")

    def _matching_nodes(self) -> list[Any]:
        return self._matching(self.summary.nodes, "module")

    def _matching_gates(self) -> list[Any]:
        return self._matching((node for node in self.summary.nodes if node.kind), "module")

    def _convertibility(self) -> ConvertibilityReport:
        from surgeon.analysis.inspect.convertibility import check

        return check(self.source.module, self.example, captured=self.summary.captured)

    def _overview(self) -> Iterable[RenderableType]:
        kinds = self.summary.gate_kinds
        rows = [
            ("model", f"{self.name}, {self.summary.parameters:,} parameters"),
            ("source", self.source.model.source),
            ("forward", f"{figure_text(self.summary.multiply_adds) or 0} multiply-adds for one sample"),
            ("gates", f"{kinds.count('gate')} gates, {kinds.count('pool')} max pools"),
            ("temperature", f"{self.source.temperature:g}, unless `surgeon export --temperature` says another"),
        ]
        if self.source.labels:
            rows.append(("classes", f"{len(self.source.labels)} with names"))
        yield facts_table(rows)
        yield ""

    def _ports(self) -> Iterable[RenderableType]:
        rows = [("in", "input", "float32", shape_text(("N", *self.source.input_shape)))]
        rows += [("in", port.name, port.dtype, shape_text(port.shape)) for port in self.source.extra_inputs]
        rows += [("out", name, "", shape_text(shape, "not one tensor")) for name, shape in self.summary.outputs.items()]
        yield table_of("what it takes and gives", PORTS, rows)

    def _layers(self) -> Iterable[RenderableType]:
        yield table_of("layers, with what is inside them", LAYERS, self._matching_layers())

    def _nodes(self) -> Iterable[RenderableType]:
        yield table_of("nodes", NODES, self._matching_nodes())

    def _gates(self) -> Iterable[RenderableType]:
        yield table_of("gates and pools", GATES, self._matching_gates())

    def _operators(self) -> Iterable[RenderableType]:
        yield table_of("operators, and how an export treats them", OPERATORS, self._convertibility().operators)

    def _classes(self) -> Iterable[RenderableType]:
        yield table_of("classes", CLASSES, enumerate(self.source.labels or ()))
