"""The sections of `surgeon inspect` for a model that is not exported yet; this needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from surgeon.analysis.inspect.structure import figure_text
from surgeon.cli.reports.tables import bytes_text, shape_text, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from surgeon.network.sources import Samples, Source

ROOT = "(root)"


class ModelSections:
    """What there is to show of a network; with a pattern, of its layers, nodes and gates those that fit.

    `example` is what the network takes, two samples. Raises ConversionError where torch.export cannot record it, and
    SurgeonError from `data` and `tables` where nothing fits.
    """

    def __init__(self, name: str, source: Source, example: Samples, pattern: str | None) -> None:
        from surgeon.analysis.inspect.model_summary import outline

        self.name, self.source, self.example, self.pattern = name, source, example, pattern
        self.outline = outline(source.module, example)
        sections = ["overview", "ports", "layers", "nodes", "gates", "operators"]
        self.there = tuple(sections + (["classes"] if source.labels else []))

    def data(self, section: str) -> Any:
        """A section as JSON values."""
        if section == "overview":
            counts = {"parameters": self.outline.parameters, "multiply_adds": self.outline.multiply_adds}
            image = dataclasses.asdict(self.source.image) if self.source.image is not None else None
            return {"model": dataclasses.asdict(self.source.model), "image": image, **counts}
        if section == "ports":
            ports = [dataclasses.asdict(port) for port in self.source.extra_inputs]
            given = {"name": "input", "dtype": "float32", "shape": ["N", *self.source.input_shape]}
            return {"inputs": [given, *ports], "outputs": self.outline.outputs}
        if section == "operators":
            return self._support().to_json()["operators"]
        if section == "classes":
            return list(self.source.labels or ())
        found = {"layers": self._layers_there, "nodes": self._steps, "gates": self._gates_there}[section]()
        return [dataclasses.asdict(one) for one in found]

    def tables(self, section: str) -> Iterable[RenderableType]:
        """A section for people."""
        shown: Iterable[RenderableType] = getattr(self, f"_{section}")()
        return shown

    def _fitting(self, listed: Iterable[Any], module: str) -> list[Any]:
        """Those of `listed` that fit the pattern: by name, or by what the attribute `module` names."""
        from surgeon.analysis.inspect.grouping import named
        from surgeon.analysis.inspect.inspection import nothing_fits

        every = list(listed)
        found = [one for one in every if named(self.pattern, getattr(one, module), [one.name])]
        if self.pattern is not None and not found:
            raise nothing_fits(self.pattern, [getattr(one, module) or one.name for one in every])
        return found

    def _layers_there(self) -> list[Any]:
        return self._fitting(self.outline.layers, "name")

    def _steps(self) -> list[Any]:
        return self._fitting(self.outline.steps, "module")

    def _gates_there(self) -> list[Any]:
        return self._fitting((step for step in self.outline.steps if step.kind), "module")

    def _support(self) -> Any:
        from surgeon.analysis.inspect.convertibility import check

        return check(self.source.module, self.example)

    def _overview(self) -> Iterable[RenderableType]:
        gates = [step.kind for step in self.outline.steps if step.kind]
        rows = [
            ("model", f"{self.name}, {self.outline.parameters:,} parameters"),
            ("source", self.source.model.source),
            ("forward", f"{figure_text(self.outline.multiply_adds) or 0} multiply-adds for one sample"),
            ("gates", f"{gates.count('gate')} gates, {gates.count('pool')} max pools"),
            ("temperature", f"{self.source.temperature:g}, unless `surgeon export --temperature` says another"),
        ]
        if self.source.labels:
            rows.append(("classes", f"{len(self.source.labels)} with names"))
        yield table("", ("", " "), rows)
        yield ""

    def _ports(self) -> Iterable[RenderableType]:
        rows = [("in", "input", "float32", shape_text(("N", *self.source.input_shape)))]
        rows += [("in", port.name, port.dtype, shape_text(port.shape)) for port in self.source.extra_inputs]
        rows += [("out", name, "", shape_text(shape, "not one tensor")) for name, shape in self.outline.outputs.items()]
        yield table("what it takes and gives", ("", "name", "dtype", "shape"), rows)

    def _layers(self) -> Iterable[RenderableType]:
        rows = []
        for one in self._layers_there():
            counted = one.parameters is not None
            costs = [figure_text(one.parameters), figure_text(one.multiply_adds)] if counted else ["", ""]
            memory = bytes_text(one.bytes) if one.bytes is not None else ""
            shape = shape_text(one.shape, "not one tensor")
            calls = one.calls if one.calls > 1 else ""
            rows.append((one.name, one.kind, shape, *costs, memory, one.gates or "", calls))
        columns = ("layer", "kind", "output", "parameters", "multiply-adds", "memory", "gates", "calls")
        yield table("layers, with what is inside them", columns, rows, columns[3:], spare=("calls", "memory", "kind"))

    def _nodes(self) -> Iterable[RenderableType]:
        rows = [(one.module or ROOT, one.name, one.operator, shape_text(one.shape)) for one in self._steps()]
        yield table("nodes", ("module", "node", "forward", "output"), rows)

    def _gates(self) -> Iterable[RenderableType]:
        rows = [
            (one.module or ROOT, one.name, one.operator, one.kind, shape_text(one.shape)) for one in self._gates_there()
        ]
        yield table(
            "gates and pools", ("module", "node", "operator", "kind", "output"), rows, spare=("operator", "node")
        )

    def _operators(self) -> Iterable[RenderableType]:
        rows = [(one.operator, len(one.places), one.treatment) for one in self._support().operators]
        yield table("operators, and how an export treats them", ("operator", "count", "treatment"), rows, ("count",))

    def _classes(self) -> Iterable[RenderableType]:
        yield table("classes", ("index", "label"), enumerate(self.source.labels or ()), right=("index",))
