"""From an ONNX file to the part of its graph that one output needs, or to one line that says why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import nn

from surgeon.errors import ConversionError, SurgeonError
from surgeon.importer import (  # noqa: F401  the families fill the table
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
from surgeon.importer.agreement import HALF_TOLERANCE, TOLERANCE, require_agreement
from surgeon.importer.network import Graph, OnnxNetwork, branches
from surgeon.importer.registry import FOLDED, OPERATORS, REFUSED, STANDARD, Numbers, kind_of

OLDEST_OPSET = 9


@dataclass(frozen=True)
class Imported:
    """A network from a file: one input, one output."""

    module: nn.Module  # float32, evaluation mode
    input_shape: tuple[int, ...]  # without the batch
    input_name: str
    output_name: str


def import_onnx(path: Path, output: str | None = None, input_shape: tuple[int, ...] | None = None) -> Imported:
    """The network in the ONNX file `path`, compared with what ONNX Runtime makes of the file.

    `output` names one of several; `input_shape` (without the batch) fills in sizes that the file leaves open. Raises
    SurgeonError where the file is damaged or its inputs and outputs do not fit, and ConversionError where it holds
    operators that are not in the table (all are named), where its batch cannot be freed, or where the module does not
    compute what ONNX Runtime computes.
    """
    model = _read(path)
    graph = model.graph
    opset = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    if opset < OLDEST_OPSET:
        raise SurgeonError(
            f"{path.name} is of opset {opset}, and surgeon reads {OLDEST_OPSET} and later",
            "Bring it up with onnx.version_converter",
        )
    given = _input(path, graph)
    returned = _output(path, graph, output)
    batch, shape = _shape(path, given, input_shape)
    nodes = _needed(graph, returned)
    _refuse_unknown(path, nodes)
    kept = _constants(path, graph, _read_by(nodes))
    network = OnnxNetwork(Graph(nodes, kept, given.name, returned, opset, batch)).eval()
    require_agreement(path, network, given.name, returned, shape, batch, _tolerance(graph))
    return Imported(network, shape, given.name, returned)


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path)
        if len(model.functions):
            model = onnx.inliner.inline_local_functions(model)
    except (DecodeError, OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SurgeonError(
            f"{path} cannot be read as an ONNX file ({reason})", "Check that it is whole, its weights file beside it"
        ) from error
    if not model.graph.node:
        raise SurgeonError(f"{path} holds no network", "Check that it is an ONNX file, and whole")
    return model


def _input(path: Path, graph: GraphProto) -> ValueInfoProto:
    """The one input that is no initializer (older files list those too), of floating-point numbers."""
    stored = {value.name for value in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        named = ", ".join(value.name for value in inputs) or "none"
        raise ConversionError(
            f"{path.name} takes {len(inputs)} inputs ({named})", "Export a network that takes one tensor"
        )
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        raise ConversionError(
            f"the input {inputs[0].name} of {path.name} is {_type_name(kind)}, not float32",
            "Give a network that takes float32, without embeddings or quantised inputs",
        )
    return inputs[0]


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


def _tolerance(graph: GraphProto) -> float:
    """Of the comparison with ONNX Runtime, which rounds to half precision where the file says so; this does not."""
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    kinds = [value.data_type for value in graph.initializer]
    kinds += [value.type.tensor_type.elem_type for value in graph.input]
    kinds += [one.i for node in graph.node if node.op_type == "Cast" for one in node.attribute if one.name == "to"]
    return HALF_TOLERANCE if any(kind in halves for kind in kinds) else TOLERANCE


def _shape(path: Path, value: ValueInfoProto, wanted: tuple[int, ...] | None) -> tuple[int | None, tuple[int, ...]]:
    """The batch, None where it is open, and the shape without it; `wanted` fills in what the file leaves open."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        if wanted is None:
            raise SurgeonError(f"{path.name} does not say what its input's shape is", "Give --input-shape C,H,W")
        return None, tuple(wanted)
    sizes = [size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim]
    names = [str(size.dim_value or size.dim_param or "?") for size in tensor.shape.dim]
    stated = f"[{', '.join(names)}]"
    if len(sizes) < 2:
        raise ConversionError(f"the input of {path.name} is {stated}, without a batch", "Export it with a batch axis")
    if wanted is None:
        known = tuple(size for size in sizes[1:] if size is not None)
        if len(known) != len(sizes) - 1:
            raise SurgeonError(
                f"{path.name} takes {stated}, which leaves sizes open",
                "Give --input-shape, without the batch, such as 3,224,224",
            )
        return sizes[0], known
    fits = len(wanted) == len(sizes) - 1 and all(
        size in (None, given) for size, given in zip(sizes[1:], wanted, strict=True)
    )
    if not fits:
        shown = ",".join(map(str, wanted))
        raise SurgeonError(f"{path.name} takes {stated}, not an input of {shown}", "Leave --input-shape out")
    return sizes[0], tuple(wanted)


def _array(path: Path, value: TensorProto) -> Numbers:
    try:
        found = numpy_helper.to_array(value)
    except (ValueError, RuntimeError, OSError) as error:
        raise SurgeonError(
            f"the weight {value.name} of {path.name} cannot be read ({str(error).splitlines()[0]})",
            "Check that the file is whole, its weights file beside it",
        ) from error
    if value.data_type == TensorProto.BFLOAT16:  # no kind of NumPy's
        return found.astype(np.float32)
    if found.dtype.kind not in "iubf":
        raise ConversionError(
            f"the weight {value.name} of {path.name} is {_type_name(value.data_type)}", "Give a network in float32"
        )
    return found


def _constants(path: Path, graph: GraphProto, read: set[str]) -> dict[str, Numbers]:
    """What of the initializers and constants of `graph`, and of the branches within, is read."""
    found = {value.name: _array(path, value) for value in graph.initializer if value.name in read}
    parts = []
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in read:
            parts.append({node.output[0]: _constant(path, node)})
        parts += [_constants(path, branch, read) for branch in branches(node).values()]
    for part in parts:
        for name, value in part.items():
            if name in found and not np.array_equal(found[name], value):
                raise ConversionError(f"two constants of {path.name} are called {name}", "Give them different names")
            found[name] = value
    return found


def _constant(path: Path, node: NodeProto) -> Numbers:
    """A Constant node's value, in whichever of its attributes it is kept."""
    (attribute,) = node.attribute
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return _array(path, value)
    if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        return np.array(value, np.float32 if "float" in attribute.name else np.int64)
    raise ConversionError(f"the constant {node.output[0]} is kept as {attribute.name}", "Keep it as a tensor")


def _needed(graph: GraphProto, output: str) -> list[NodeProto]:
    """The nodes that lead to `output`, in order: ONNX sorts its nodes."""
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= _read_by([node])
    return kept[::-1]


def _read_by(nodes: Iterable[NodeProto]) -> set[str]:
    """Names of what `nodes` read, and of what the branches within them read and return."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        for branch in branches(node).values():
            read |= _read_by(branch.node) | {value.name for value in branch.output}
    return read


def _refuse_unknown(path: Path, nodes: list[NodeProto]) -> None:
    unknown = Counter(kind for kind in map(kind_of, nodes) if kind not in {*OPERATORS, *FOLDED, "Constant", "If"})
    if unknown:
        reasons = {kind: f": {REFUSED[kind]}" for kind in unknown if kind in REFUSED}
        listed = ", ".join(f"{kind} ({count}{reasons.get(kind, '')})" for kind, count in sorted(unknown.items()))
        raise ConversionError(
            f"{path.name} holds operators that surgeon cannot import: {listed}",
            "Export the network with others, or add them in surgeon/importer",
        )
