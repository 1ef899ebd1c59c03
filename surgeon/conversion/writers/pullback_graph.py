"""From a recorded program to the ONNX graph of the pullback, named and described as the artifacts want it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper
from torch.export import ExportedProgram

from surgeon.bundle.ports import BATCH, RESERVED
from surgeon.conversion.writers.padding import keep_zero_padding
from surgeon.conversion.writers.plan import Plan
from surgeon.conversion.writers.translation import INLINE_BYTES, fold, translate
from surgeon.network.wrapping import source_name
from surgeon.runtime.graphs import attribute, named, rename, shape_of

_ORIGIN = "surgeon."


def translate_program(
    program: ExportedProgram, path: Path, weights: str, plan: Plan, outputs: Sequence[str]
) -> ModelProto:
    """Write the file `weights` beside `path`, and return the graph that reads it, with our own metadata on its nodes.

    `program` is used up. Raises ConversionError where torch.onnx cannot translate it.
    """
    extra_inputs, opset = plan.extra_inputs, plan.recipe.opset
    own = ["input", "cotangent", "temperature"][: len(program.graph_signature.user_inputs) - len(extra_inputs)]
    for node in program.graph.nodes:
        # The exporter copies stack traces into each ONNX node that it makes of an fx node, and nothing else of ours.
        node.meta["stack_trace"] = _ORIGIN + json.dumps(node.meta.get("custom", {}).get("surgeon", {}))
    model = fold(translate(program, (), None, [*own, *extra_inputs], outputs, opset))
    onnx_ir.save(model, path, external_data=weights, size_threshold_bytes=INLINE_BYTES)
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        _own_metadata(node)
    for initializer in proto.graph.initializer:
        del initializer.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    ports = {port.name: port for port in proto.graph.input}
    del proto.graph.input[:]
    proto.graph.input.extend(ports[name] for name in ("input", *extra_inputs, *own[1:]))
    _name_sizes(proto.graph)
    _read_sizes_of_input(proto.graph)
    _prefix_parameters(proto.graph)
    keep_zero_padding(proto.graph)
    describe(proto.graph, list(proto.graph.value_info))
    return proto


def _own_metadata(node: NodeProto) -> None:
    """Replace the exporter's traces by surgeon.node, surgeon.module and surgeon.role."""
    found = {prop.key: prop.value for prop in node.metadata_props}
    del node.metadata_props[:]
    trace = found.get("pkg.torch.onnx.stack_trace", "")
    origin = json.loads(trace.removeprefix(_ORIGIN)) if trace.startswith(_ORIGIN) else {}
    for key, value in origin.items():
        node.metadata_props.add(key=_ORIGIN + key, value=value)


def _name_sizes(graph: GraphProto) -> None:
    """Rename the free sizes that the exporter named: the batch is N, the input's height and width are H and W."""
    sizes = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim]
    names = {size: name for size, name in zip(sizes, (BATCH, "", "H", "W"), strict=False) if size}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _read_sizes_of_input(graph: GraphProto) -> None:
    """Read sizes of the input instead of the cotangent's: ascents compute the cotangent later, from the output."""
    sizes = {port.name: shape_of(port) for port in graph.input}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == "cotangent":
            size = sizes["cotangent"][attribute(node, "start", 0)]
            if size in sizes["input"]:
                place = sizes["input"].index(size)
                del node.attribute[:]
                bounds = {"start": place, "end": place + 1}
                node.attribute.extend(helper.make_attribute(*bound) for bound in bounds.items())
                node.input[0] = "input"


def _prefix_parameters(graph: GraphProto) -> None:
    """Name parameters as in the source module, where that is free: surgeon_network.conv.weight -> conv.weight."""
    taken = RESERVED | {port.name for port in graph.input} | {name for node in graph.node for name in node.output}
    names = {i.name: short for i in graph.initializer if (short := source_name(i.name)) not in taken}
    rename(graph.node, names)
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)


def describe(graph: GraphProto, values: Sequence[ValueInfoProto], prefix: str = "") -> None:
    """Copy the shapes in `values` to the results of `graph` that have the same name behind `prefix`.

    Initializers have shapes already. ONNX Runtime's layouts depend on knowing that two shapes are the same.
    """
    known = {prefix + value.name: value for value in values}
    made = [name for node in graph.node for name in node.output]
    described = [named(known[name], name) for name in made if name in known]
    del graph.value_info[:]
    graph.value_info.extend(described)
