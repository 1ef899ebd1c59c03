"""Imports ONNX files: the part of the graph that one output depends on, or an error that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import nn

from surgeon.bundle.manifest import Port
from surgeon.errors import ConversionError, SurgeonError, UnknownOperators, first_line
from surgeon.network.importer import (  # noqa: F401  the families fill the table
    activations,
    arithmetic,
    folding,
    fused,
    indexing,
    norms,
    reductions,
    resizing,
    shapes,
    windows,
)
from surgeon.network.importer.agreement import require_agreement
from surgeon.network.importer.network import ImportedGraph, OnnxNetwork, branches
from surgeon.network.importer.registry import FOLDED, OPERATORS, REFUSED, STANDARD, Numbers, kind_of
from surgeon.network.inputs import DTYPES, Shapes, identifiers, port, refuse_unknown, samples, stated_shape
from surgeon.network.weights import varied_input
from surgeon.runtime.graphs import names_read, needed

OLDEST_OPSET = 9

_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_DTYPES: dict[int, str] = {
    **dict.fromkeys(_FLOATING, "float32"),
    **{TensorProto.INT64: "int64", TensorProto.INT32: "int32", TensorProto.BOOL: "bool"},
}


@dataclass(frozen=True)
class Imported:
    """A network from a file; it takes its input, then its extra inputs."""

    module: nn.Module  # float32, evaluation mode
    input_shape: tuple[int, ...]  # without the batch
    input_name: str
    output_name: str
    extra_inputs: tuple[Port, ...] = ()


def import_onnx(
    path: Path,
    output: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    input: str | None = None,
    extra_inputs: Shapes | None = None,
) -> Imported:
    """The network in the ONNX file `path`, compared with ONNX Runtime's result for the file.

    `output` names one of several, and `input` the differentiated one (default: the first of floating point);
    `input_shape` and the shapes of `extra_inputs` (without the batch) fill in sizes that the file leaves open. Raises
    SurgeonError where the file is damaged or its inputs and outputs do not fit, and ConversionError where it holds
    operators without an import rule (all are named), where its batch cannot be freed, or where the module deviates from
    ONNX Runtime.
    """
    model = _read(path)
    graph = model.graph
    opset = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    if opset < OLDEST_OPSET:
        raise SurgeonError(
            f"{path.name} is of opset {opset}, and surgeon reads {OLDEST_OPSET} and later",
            "Bring it up with onnx.version_converter",
        )
    given, *rest = _inputs(path, graph, input)
    returned = _output(path, graph, output)
    batch, shape = _shape(path, given, input_shape)
    with_extra_inputs = _extra_ports(path, rest, batch, extra_inputs or {})
    nodes = needed(graph.node, [returned])
    kept = _constants(path, graph, set(names_read(nodes)))
    nodes = _dequantised(nodes, kept)
    _refuse_unknown(path, nodes)
    read = set(names_read(nodes))
    kept = {name: value for name, value in kept.items() if name in read}
    names = [value.name for value in (given, *rest)]
    network = OnnxNetwork(ImportedGraph(nodes, kept, names, returned, opset, batch)).eval()
    generator = torch.Generator().manual_seed(0)
    values = [
        varied_input(2 * (batch or 1), shape, generator),
        *samples(with_extra_inputs, 2 * (batch or 1), generator),
    ]
    require_agreement(path, network, dict(zip(names, values, strict=True)), returned, batch, _in_halves(graph))
    return Imported(network, shape, given.name, returned, with_extra_inputs)


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path)
        if len(model.functions):
            model = onnx.inliner.inline_local_functions(model)
    except (DecodeError, OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise SurgeonError(
            f"{path} cannot be read as an ONNX file ({first_line(error)})",
            "Check that it is whole, its weights file beside it",
        ) from error
    if not model.graph.node:
        raise SurgeonError(f"{path} holds no network", "Check that it is an ONNX file, and whole")
    _sort(path, model.graph)
    return model


def _sort(path: Path, graph: GraphProto) -> None:
    """Sort nodes so that each stands after those that it reads from; sorted nodes keep their order.

    ONNX asks for that, but ONNX Runtime does without (not within branches), and some converters to half precision
    append the casts that the first nodes read.
    """
    waiting = [(node, set(names_read([node]))) for node in graph.node]
    unmade = {name for node in graph.node for name in node.output if name}
    ordered: list[NodeProto] = []
    while waiting:
        later = []
        for node, read in waiting:
            if unmade.isdisjoint(read):
                ordered.append(node)
                unmade.difference_update(node.output)
            else:
                later.append((node, read))
        if len(later) == len(waiting):
            raise SurgeonError(
                f"{path} reads {later[0][0].output[0]} before it is computed", "Mend its circle of nodes"
            )
        waiting = later
    if any(node is not other for node, other in zip(ordered, graph.node, strict=True)):
        copies = GraphProto(node=ordered)
        del graph.node[:]
        graph.node.extend(copies.node)


def _inputs(path: Path, graph: GraphProto, wanted: str | None) -> list[ValueInfoProto]:
    """The inputs without initializers, which older files list, too; the differentiated one first."""
    stored = {value.name for value in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    named = ", ".join(value.name for value in inputs) or "nothing"
    if wanted is not None and wanted not in [value.name for value in inputs]:
        raise SurgeonError(f"{path.name} has no input {wanted!r}", f"It takes {named}")
    floating = [value for value in inputs if value.type.tensor_type.elem_type in _FLOATING]
    chosen = [value for value in inputs if value.name == wanted] if wanted is not None else floating
    if not chosen or chosen[0] not in floating:
        kinds = ", ".join(f"{value.name} ({_type_name(value.type.tensor_type.elem_type)})" for value in inputs)
        raise ConversionError(
            f"no input of {path.name} holds float32 to pull back to: it takes {kinds or 'nothing'}",
            "Give a network that takes float32, without embeddings or quantised inputs",
        )
    return [chosen[0], *(value for value in inputs if value is not chosen[0])]


def _extra_ports(path: Path, values: Sequence[ValueInfoProto], batch: int | None, stated: Shapes) -> tuple[Port, ...]:
    """The ports of the extra inputs, under their names as identifiers.

    What is `stated` of one may go by that, or by the name that it has in the file.
    """
    words = identifiers(value.name for value in values)
    words_by_name = {value.name: word for value, word in zip(values, words, strict=True) if value.name not in words}
    by_word = {words_by_name.get(name, name): said for name, said in stated.items()}
    refuse_unknown(path.name, by_word, words)
    return tuple(_port(path, value, word, batch, by_word.get(word)) for value, word in zip(values, words, strict=True))


def _port(path: Path, value: ValueInfoProto, name: str, batch: int | None, stated: Any) -> Port:
    """The port of one extra input, called `name`; `stated` is the user's shape, or None."""
    kind = value.type.tensor_type.elem_type
    if kind not in _DTYPES:
        raise ConversionError(
            f"the input {value.name} of {path.name} is {_type_name(kind)}",
            f"Have it take {' or '.join(DTYPES)}, and cast that inside",
        )
    shape = None if stated is None else stated_shape(path.name, name, stated, _DTYPES[kind])
    rows, shape = _shape(path, value, shape, f"--extra-input {name}=SHAPE")
    if rows != batch:
        raise ConversionError(
            f"the input {value.name} of {path.name} has another batch than the one that is pulled back to",
            "Export both with the same, best a dynamic one",
        )
    return port(name, (shape, _DTYPES[kind]), value.name)


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind).lower()


def _output(path: Path, graph: GraphProto, wanted: str | None) -> str:
    names = [value.name for value in graph.output]
    if not names:
        raise ConversionError(f"{path.name} has no output", "Name one in the file")
    if wanted is None and len(names) != 1:
        raise ConversionError(
            f"{path.name} has {len(names)} outputs ({', '.join(names)})", f"Name one: {path}:{names[0]}"
        )
    if wanted is not None and wanted not in names:
        raise SurgeonError(f"{path.name} has no output {wanted!r}", f"Its outputs: {', '.join(names)}")
    return wanted or names[0]


def _in_halves(graph: GraphProto) -> bool:
    """Whether the file makes ONNX Runtime round to half precision anywhere."""
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    kinds = [value.data_type for value in graph.initializer]
    kinds += [value.type.tensor_type.elem_type for value in graph.input]
    kinds += [
        field.i for node in graph.node if node.op_type == "Cast" for field in node.attribute if field.name == "to"
    ]
    return any(kind in halves for kind in kinds)


def _shape(
    path: Path, value: ValueInfoProto, wanted: tuple[int, ...] | None, option: str = "--input-shape C,H,W"
) -> tuple[int | None, tuple[int, ...]]:
    """The batch, None where it is open, and the shape without it; `wanted` fills in what the file leaves open."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        if wanted is None:
            raise SurgeonError(f"{path.name} does not say what the shape of {value.name} is", f"Give {option}")
        return None, tuple(wanted)
    sizes = [size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim]
    names = [str(size.dim_value or size.dim_param or "?") for size in tensor.shape.dim]
    stated = f"[{', '.join(names)}]"
    if len(sizes) < (2 if option.startswith("--input") else 1):
        raise ConversionError(
            f"the input {value.name} of {path.name} is {stated}, without a batch", "Export it with a batch axis"
        )
    if wanted is None:
        known = tuple(size for size in sizes[1:] if size is not None)
        if len(known) != len(sizes) - 1:
            raise SurgeonError(
                f"{path.name} takes {stated} as {value.name}, which leaves sizes open",
                f"Give {option}, without the batch",
            )
        return sizes[0], known
    fits = len(wanted) == len(sizes) - 1 and all(
        size in (None, given) for size, given in zip(sizes[1:], wanted, strict=True)
    )
    if not fits:
        shown = ",".join(map(str, wanted))
        raise SurgeonError(f"{path.name} takes {stated}, not an input of {shown}", f"Leave {option.split()[0]} out")
    return sizes[0], tuple(wanted)


def _array(path: Path, value: TensorProto) -> Numbers:
    try:
        array = numpy_helper.to_array(value)
    except (ValueError, RuntimeError, OSError) as error:
        raise SurgeonError(
            f"the weight {value.name} of {path.name} cannot be read ({first_line(error)})",
            "Check that the file is whole, its weights file beside it",
        ) from error
    if value.data_type == TensorProto.BFLOAT16:  # NumPy has no such dtype
        return array.astype(np.float32)
    if array.dtype.kind not in "iubf":
        raise ConversionError(
            f"the weight {value.name} of {path.name} is {_type_name(value.data_type)}", "Give a network in float32"
        )
    return array


def _constants(path: Path, graph: GraphProto, read: set[str]) -> dict[str, Numbers]:
    """The initializers and constants in `read`, of `graph` and of the branches inside it."""
    constants = {value.name: _array(path, value) for value in graph.initializer if value.name in read}
    parts = []
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in read:
            parts.append({node.output[0]: _constant(path, node)})
        parts += [_constants(path, branch, read) for branch in branches(node).values()]
    for part in parts:
        for name, value in part.items():
            if name in constants and not np.array_equal(constants[name], value):
                raise ConversionError(f"two constants of {path.name} are called {name}", "Give them different names")
            constants[name] = value
    return constants


def _constant(path: Path, node: NodeProto) -> Numbers:
    """The value of a Constant node, from whichever attribute holds it."""
    if len(node.attribute) != 1:
        raise ConversionError(f"the constant {node.output[0]} of {path.name} has no value", "Mend the file")
    (attribute,) = node.attribute
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return _array(path, value)
    if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        return np.array(value, np.float32 if "float" in attribute.name else np.int64)
    raise ConversionError(f"the constant {node.output[0]} is kept as {attribute.name}", "Keep it as a tensor")


def _dequantised(nodes: list[NodeProto], constants: dict[str, Numbers]) -> list[NodeProto]:
    """Add weights stored as integers, (x - zero) * scale, to `constants`; return `nodes` without their dequantisation.

    Scale and zero are one for all, or one for each place along an axis.
    """
    extra_inputs = []
    for node in nodes:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        inputs = [constants.get(name) for name in node.input if name]
        stored = kind_of(node) == "DequantizeLinear" and all(value is not None for value in inputs)
        if not stored or options.get("block_size"):
            extra_inputs.append(node)
            continue
        x, *spread = (value for value in inputs if value is not None)
        axis = options.get("axis", 1) if x.ndim else 0
        shape = [-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]
        scale, *zero = (value.reshape(shape if value.size > 1 else [1] * x.ndim) for value in spread)
        whole = x.astype(np.int64) - zero[0] if zero else x
        constants[node.output[0]] = whole.astype(scale.dtype) * scale
    return extra_inputs


def _refuse_unknown(path: Path, nodes: list[NodeProto]) -> None:
    unknown: dict[str, list[str]] = {}
    for node in nodes:
        if kind_of(node) not in {*OPERATORS, *FOLDED, "Constant", "If"}:
            unknown.setdefault(kind_of(node), []).append(node.name or node.output[0])
    if unknown:
        reasons = {kind: f": {REFUSED[kind]}" if kind in REFUSED else "" for kind in unknown}
        told = [f"{kind} ({len(unknown[kind])}{reasons[kind]})" for kind in sorted(unknown)]
        raise UnknownOperators(
            f"{path.name} holds operators that surgeon cannot import: {', '.join(told)}",
            "Export the network with others, or add them in surgeon/network/importer",
            unknown,
            {kind: REFUSED.get(kind, "surgeon cannot import it") for kind in unknown},
        )
