"""An ONNX graph as a module: it calls its nodes in order, each a small module of the node's name."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from surgeon.errors import ConversionError, first_line
from surgeon.network.importer.registry import (
    FOLDED,
    OPERATORS,
    REFUSED,
    Context,
    ImportRule,
    Numbers,
    as_tensor,
    kind_of,
)

KNOWN_SIZE = 64
"""Floating-point constants up to this size are available as numbers: edges, scales, ratios."""


@dataclass(frozen=True)
class ImportedGraph:
    """The part of a file that one output depends on: nodes in order, and constants by name."""

    nodes: Sequence[NodeProto]
    constants: Mapping[str, Numbers]
    inputs: Sequence[str]  # the differentiated one first
    output: str
    opset: int
    fixed: int | None  # the batch that the file fixes; None where it is free


@dataclass(frozen=True)
class Branch:
    """One side of an If: names of its calls and of its outputs."""

    calls: Sequence[str]
    outputs: Sequence[str]


class NodeModule(nn.Module):
    """One node of the graph."""

    def __init__(self, node: NodeProto) -> None:
        super().__init__()
        self.kind, self.title = kind_of(node), node.name or node.output[0]
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes = {
            attribute.name: _attribute(attribute)
            for attribute in node.attribute
            if attribute.type != AttributeProto.GRAPH
        }
        self.branches: dict[bool, Branch] = {}  # both sides of an If
        for names in (self.inputs, self.outputs):
            while names and not names[-1]:
                names.pop()

    def forward(self, arguments: list[Any], operator: ImportRule, context: Context) -> tuple[Any, ...]:
        unknown = sorted(set(self.attributes) - operator.attributes)
        if unknown:
            raise ConversionError(f"the attribute {unknown[0]}", "Leave it out")
        options = {"context": context} if operator.contextual else {}
        returned = operator.call(*arguments, **self.attributes, **options)
        return returned if isinstance(returned, tuple) else (returned,)


class OnnxNetwork(nn.Module):
    """forward(input [N, …], the graph's other inputs) -> the chosen output of `graph`, by plain torch calls.

    Weights are parameters and statistics of batch norms buffers, under the file's names, with characters other than
    ASCII letters, digits and underscores replaced. Integers, and values that the file computes from them and from
    shapes, stay numbers, so that N stays dynamic under torch.export. The forward raises ConversionError with the name
    of a node that cannot be computed.
    """

    def __init__(self, graph: ImportedGraph) -> None:
        super().__init__()
        self._graph_inputs, self._graph_output = tuple(graph.inputs), graph.output
        self._opset, self._fixed = graph.opset, graph.fixed
        self._numbers: dict[str, Numbers] = {}
        self._names: dict[str, str] = {}  # constant in the file -> parameter or buffer
        statistics = {name for node in graph.nodes if node.op_type == "BatchNormalization" for name in node.input[3:]}
        for name, value in graph.constants.items():
            floating = value.dtype.kind == "f"
            if not floating or value.size == 1 or (value.size <= KNOWN_SIZE and value.ndim <= 1):
                self._numbers[name] = value
            if floating:
                self._names[name] = self._free_name(name)
                tensor = torch.from_numpy(value.astype(np.float32, copy=True))
                if name in statistics or not value.ndim:
                    self.register_buffer(self._names[name], tensor)
                else:
                    self.register_parameter(self._names[name], nn.Parameter(tensor, requires_grad=False))
        self._calls = self._added(graph.nodes)

    def _added(self, nodes: Iterable[NodeProto]) -> list[str]:
        """Add `nodes`, and those in their branches, as calls of this module; return the calls' names."""
        calls = []
        for node in nodes:
            if node.op_type == "Constant":
                continue
            calls.append(self._free_name(node.name or f"{node.op_type}_{len(self._modules)}"))
            self.add_module(calls[-1], call := NodeModule(node))
            for side, graph in branches(node).items():
                call.branches[side] = Branch(self._added(graph.node), [value.name for value in graph.output])
        return calls

    def _free_name(self, name: str) -> str:
        """An unused attribute name for `name`."""
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
        plain = plain if not plain[0].isdigit() else f"_{plain}"
        while hasattr(self, plain) or keyword.iskeyword(plain):
            plain += "_"
        return plain

    def called(self, name: str) -> NodeModule | None:
        """The node called `name`, or the node whose single output is called so."""
        calls = [part for part in self.children() if isinstance(part, NodeModule)]
        named = [call for call in calls if call.title == name]
        return next(iter([*named, *(call for call in calls if call.outputs == [name])]), None)

    def forward(self, input: Tensor, *extra_inputs: Tensor) -> Tensor:
        tensors: dict[str, Tensor] = {name: getattr(self, own) for name, own in self._names.items()}
        tensors |= zip(self._graph_inputs, (input, *extra_inputs), strict=True)
        numbers = dict(self._numbers)
        self._run(self._calls, tensors, numbers, input)
        if self._graph_output not in tensors:
            raise ConversionError(f"the output {self._graph_output} is no tensor of numbers", "Choose another one")
        return tensors[self._graph_output]

    def _run(
        self, calls: Sequence[str], tensors: dict[str, Tensor], numbers: dict[str, Numbers], input: Tensor
    ) -> None:
        """Run `calls`, and add their results to `tensors` and `numbers`."""
        for attribute in calls:
            call = getattr(self, attribute)
            assert isinstance(call, NodeModule)
            if call.branches:
                branch = call.branches[_condition(call, numbers)]
                self._run(branch.calls, tensors, numbers, input)
                for name, inner in zip(call.outputs, branch.outputs, strict=True):
                    _assign(name, tensors.get(inner), numbers.get(inner), tensors, numbers)
                continue
            context = Context(self._opset, len(call.outputs), input.shape[0], self._fixed, input.dtype)
            try:
                results = _called(call, tensors, numbers, context)
            except ConversionError as error:
                raise ConversionError(f"{call.kind} {call.title}: {error.message}", error.remedy) from error
            except Exception as error:  # an operator raises anything on arguments that the file makes up
                raise ConversionError(
                    f"{call.kind} {call.title} cannot be computed ({first_line(error)})",
                    "A batch that the file fixes is the usual cause: export it with a dynamic one",
                ) from error
            for name, value in zip(call.outputs, results, strict=False):
                if isinstance(value, Tensor):
                    _assign(name, value, None, tensors, numbers)
                else:
                    _assign(name, None, np.asarray(value), tensors, numbers)


def _assign(
    name: str,
    tensor: Tensor | None,
    known: Numbers | None,
    tensors: dict[str, Tensor],
    numbers: dict[str, Numbers],
) -> None:
    """Set the value called `name`, and remove an earlier one: branches may reuse names."""
    for value, values in ((tensor, tensors), (known, numbers)):
        values.pop(name, None)
        if value is not None:
            values[name] = value  # type: ignore[assignment]


def branches(node: NodeProto) -> dict[bool, GraphProto]:
    """Both sides of an If; empty for any other node."""
    sides = {"then_branch": True, "else_branch": False}
    return {sides[entry.name]: entry.g for entry in node.attribute if node.op_type == "If" and entry.name in sides}


def _condition(call: NodeModule, numbers: dict[str, Numbers]) -> bool:
    if call.inputs[0] not in numbers:
        raise ConversionError(
            f"If {call.title}: its condition is computed from the data", "Export the branch that is meant"
        )
    return bool(numbers[call.inputs[0]].item())


def _called(
    call: NodeModule, tensors: dict[str, Tensor], numbers: dict[str, Numbers], context: Context
) -> tuple[Any, ...]:
    names = [name for name in call.inputs if name]
    if call.kind in FOLDED and names and all(name in numbers for name in names):
        results = call([numbers[name] if name else None for name in call.inputs], FOLDED[call.kind], context)
        if results[0] is not NotImplemented:
            return results
    if call.kind not in OPERATORS:
        if call.kind in FOLDED:
            raise ConversionError("its inputs are computed from the data", "Make them constants")
        raise ConversionError(REFUSED.get(call.kind, "an operator that surgeon cannot import"), "Export without it")
    operator = OPERATORS[call.kind]
    arguments: list[Any] = []
    for i, name in enumerate(call.inputs):
        if not operator.variadic and i >= len(operator.takes):
            raise ConversionError(f"{len(call.inputs)} inputs", f"It takes {len(operator.takes)}")
        taken = operator.takes[min(i, len(operator.takes) - 1)]
        if not name:
            arguments.append(None)
        elif name not in tensors and name not in numbers:
            raise ConversionError(f"its input {name} is not computed", "It is left out of what surgeon imports")
        elif taken is not Tensor and name in numbers:
            arguments.append(numbers[name])
        elif taken is np.ndarray:
            raise ConversionError(f"its input {name} is computed from the data", "Make it a constant")
        else:
            arguments.append(tensors[name] if name in tensors else as_tensor(numbers[name], context.dtype))
    return call(arguments, operator, context)


def _attribute(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
