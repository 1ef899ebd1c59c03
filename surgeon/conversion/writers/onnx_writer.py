"""The three ONNX artifacts of a bundle: `pullback.onnx` from the exporter, the two ascents grafted from it.

The exporter translates the pullback graph once. Objective and step are exported as small fragments and joined to it by
name, and the `Loop` of `ascent.onnx` holds one such step. All initializers refer to one file of weights: nothing is
translated or stored twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from surgeon.bundle.manifest import Recipe
from surgeon.bundle.ports import BATCH, GATES, RESERVED
from surgeon.conversion.writers.ascent import AscentStep, Climb, Objective
from surgeon.conversion.writers.padding import keep_zero_padding
from surgeon.conversion.writers.sharing import share_weights
from surgeon.conversion.writers.translation import INLINE_BYTES, fold, translate
from surgeon.errors import ConversionError, first_line
from surgeon.network.wrapping import source_name
from surgeon.runtime.tuning import tune
from surgeon.runtime.tuning.blocked import keep_blocked

WEIGHTS = "weights.bin"
_ORIGIN = "surgeon."


def write_onnx(
    program: ExportedProgram,
    folder: Path,
    recipe: Recipe,
    defaults: Mapping[str, Any],
    value_range: tuple[float, float],
    facts: str,
    extra_inputs: Sequence[str] = (),
) -> dict[str, int]:
    """Write pullback.onnx, ascent_step.onnx, ascent.onnx and weights.bin into `folder`.

    `program` is what `surgeon.conversion.rewriting.rewrite_program` returns, and `extra_inputs` the names of its last
    inputs, those that the network has beside the one that is pulled back to; `defaults` are those of inputs that may be
    left out (`Manifest.input_defaults`); images are clamped to `value_range` by each step; `facts` (JSON) goes into
    `metadata_props`. Returns how often each pass of `surgeon.runtime.tuning` applied to the first file.
    """
    pullback = _translate(
        program, folder / "pullback.onnx", WEIGHTS, recipe.opset, extra_inputs, ["output", "pullback"]
    )
    passes = keep_blocked(pullback.graph) if _is_tuned(recipe) else {}
    climb = Climb(Objective(recipe.objective), AscentStep(recipe.step, recipe.norm, *value_range))
    objective, step = _fragments(climb, pullback, recipe.opset)
    models = {
        "pullback.onnx": pullback,
        "ascent_step.onnx": _ascent_step(pullback, objective, step),
        "ascent.onnx": _ascent(pullback, objective, step),
    }
    for name, model in models.items():
        applied = _save(model, folder / name, recipe, defaults, facts)
        passes |= applied if name == "pullback.onnx" else {}
    return passes


def write_gates(
    program: ExportedProgram,
    folder: Path,
    recipe: Recipe,
    defaults: Mapping[str, Any],
    facts: str,
    outputs: Sequence[str],
    extra_inputs: Sequence[str] = (),
) -> None:
    """Write gates.onnx into `folder`, behind the other files: what they have in weights.bin is stored once.

    `program` is that of a `surgeon.conversion.probe.GateProbe`, whose outputs are called `outputs`; the rest is as for
    `write_onnx`.
    """
    own = Path(GATES).with_suffix(".bin").name
    model = _translate(program, folder / GATES, own, recipe.opset, extra_inputs, outputs)
    if _is_tuned(recipe):
        keep_blocked(model.graph)
    first = onnx.load(folder / "pullback.onnx", load_external_data=False)
    share_weights(model, first, folder, own, WEIGHTS)
    _save(model, folder / GATES, recipe, defaults, facts)


def _is_tuned(recipe: Recipe) -> bool:
    """Whether the graph is put as a CPU likes it."""
    return recipe.layout != "plain" and recipe.precision == "fp32"


def _save(model: ModelProto, path: Path, recipe: Recipe, defaults: Mapping[str, Any], facts: str) -> dict[str, int]:
    """Write the finished file; return how often each pass of `surgeon.runtime.tuning` applied."""
    helper.set_model_props(model, {"surgeon": facts})
    applied = tune(model) if _is_tuned(recipe) and recipe.layout == "tuned" else {}
    _add_defaults(model, defaults)
    model.producer_name = "surgeon"
    onnx.save(model, path)
    _check(path)
    return applied


def _check(path: Path) -> None:
    """Raise ConversionError where the file does not hold together."""
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        # Known of free sizes: one that the output has and the input has not, which the network reads on its way.
        raise ConversionError(
            f"{path.name} cannot be ordered: it reads a size of the output before the output is there "
            f"({first_line(error)})",
            "Leave --dynamic-size out, or give --formats torchscript",
        ) from error


def embed_weights(folder: Path) -> None:
    """Move the shared weights into each ONNX file of `folder` (protobuf holds at most 2 GB a file)."""
    for path in sorted(folder.glob("*.onnx")):
        onnx.save(onnx.load(path), path)
    (folder / WEIGHTS).unlink()


def export_plain(module: nn.Module, example: Tensor, path: Path, opset: int = 18) -> None:
    """The ordinary ONNX export of a network, with its weights beside it: what a bundle is measured against."""
    model = translate(module.eval(), (example,), ({0: Dim("batch", min=1)},), ["input"], ["output"], opset, True)
    onnx_ir.save(model, path, external_data=path.stem + ".bin", size_threshold_bytes=INLINE_BYTES)


def _translate(
    program: ExportedProgram, path: Path, weights: str, opset: int, extra_inputs: Sequence[str], outputs: Sequence[str]
) -> ModelProto:
    """Write the weights and return the graph that reads them, with our own metadata in the place of the exporter's."""
    own = ["input", "cotangent", "temperature"][: len(program.graph_signature.user_inputs) - len(extra_inputs)]
    inputs = [*own, *extra_inputs]
    for node in program.graph.nodes:
        # The exporter copies stack traces into each ONNX node that it makes of an fx node, and nothing else of ours.
        node.meta["stack_trace"] = _ORIGIN + json.dumps(node.meta.get("custom", {}).get("surgeon", {}))
    model = fold(translate(program, (), None, inputs, outputs, opset))
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
    _describe(proto.graph, list(proto.graph.value_info))
    return proto


def _own_metadata(node: NodeProto) -> None:
    """surgeon.node, surgeon.module and surgeon.role, in the place of the exporter's traces."""
    found = {prop.key: prop.value for prop in node.metadata_props}
    del node.metadata_props[:]
    trace = found.get("pkg.torch.onnx.stack_trace", "")
    origin = json.loads(trace.removeprefix(_ORIGIN)) if trace.startswith(_ORIGIN) else {}
    for key, value in origin.items():
        node.metadata_props.add(key=_ORIGIN + key, value=value)


def _mark(nodes: Sequence[NodeProto], role: str) -> None:
    for node in nodes:
        del node.metadata_props[:]
        node.metadata_props.add(key=_ORIGIN + "role", value=role)


def _name_sizes(graph: GraphProto) -> None:
    """Call the batch N, and the input's height and width, where they are free, H and W, whatever the exporter did."""
    sizes = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim]
    names = {size: name for size, name in zip(sizes, (BATCH, "", "H", "W"), strict=False) if size}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _read_sizes_of_input(graph: GraphProto) -> None:
    """Read of the cotangent no size that the input has: ascents compute the cotangent from the output, later."""
    sizes = {port.name: _shape(port) for port in graph.input}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == "cotangent":
            start = {attribute.name: attribute.i for attribute in node.attribute}.get("start", 0)
            size = sizes["cotangent"][start]
            if size in sizes["input"]:
                place = sizes["input"].index(size)
                del node.attribute[:]
                node.attribute.extend(helper.make_attribute(*one) for one in (("start", place), ("end", place + 1)))
                node.input[0] = "input"


def _prefix_parameters(graph: GraphProto) -> None:
    """surgeon_network.conv.weight -> conv.weight: parameters by their name in the source module, if it is free."""
    taken = RESERVED | {port.name for port in graph.input} | {name for node in graph.node for name in node.output}
    names = {i.name: short for i in graph.initializer if (short := source_name(i.name)) not in taken}
    _rename(graph.node, names)
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)


def _describe(graph: GraphProto, values: Sequence[ValueInfoProto], prefix: str = "") -> None:
    """Give those results in `graph` that are called as in `values`, but for `prefix`, the shapes from there.

    Initializers have theirs already. ONNX Runtime's layouts depend on knowing that two shapes are the same.
    """
    known = {prefix + value.name: value for value in values}
    made = [name for node in graph.node for name in node.output]
    described = [_like(known[name], name) for name in made if name in known]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _rename(nodes: Sequence[NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = names.get(name, name)


def _fragments(climb: Climb, pullback: ModelProto, opset: int) -> tuple[GraphProto, GraphProto]:
    """Objective and step, for inputs named and shaped as in `pullback`; inner names cannot meet those of others.

    Both are exported at once, since most of what that takes is the same whatever is exported.
    """
    inputs = ["output", "cotangent", "input", "origin", "pullback", "step_size", "radius"]
    outputs = ["score", "climbed", "perturbed"]
    shapes = {port.name: _shape(port) for port in (*pullback.graph.input, *pullback.graph.output)}
    alike = {"origin": "input", "step_size": None, "radius": None}
    arguments, dynamic = [], []
    for name in inputs:
        shape = shapes.get(alike.get(name, name) or "", [])
        arguments.append(torch.ones([2 if isinstance(size, str) else size for size in shape]))
        free = {i: Dim.DYNAMIC for i, size in enumerate(shape) if isinstance(size, str)}
        dynamic.append(free if shape else None)
    # An energy does not read its cotangent, and logit only passes it on: the exporter keeps such inputs all the same.
    model = onnx_ir.to_proto(translate(climb, tuple(arguments), tuple(dynamic), inputs, outputs, opset, True))
    graph, prefix = model.graph, "climb/"
    inner = {o for node in graph.node for o in node.output} | {i.name for i in graph.initializer}
    names = {name: prefix + name for name in inner if name not in outputs}
    _rename(graph.node, names)
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
        del initializer.metadata_props[:]
    for node in graph.node:
        node.name = prefix + node.name
    _mark(graph.node, "step")
    objective, step = (
        helper.make_graph(_needed(list(graph.node), made), "climb", [], [], graph.initializer)
        for made in (outputs[:2], outputs[2:])
    )
    return objective, step


def _shape(port: ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim]


def _climbing(pullback: ModelProto, objective: GraphProto) -> list[NodeProto]:
    """The pullback's nodes with the objective between output and cotangent, in an order that can run."""
    nodes = [_copied(node) for node in pullback.graph.node]
    early = [i for i, node in enumerate(nodes) if "cotangent" in node.input][:1]
    turn = 1 + max(i for i, node in enumerate(nodes) if "output" in node.output)
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == "cotangent":
                node.input[i] = "climbed"
    if early and early[0] < turn:  # a size of the cotangent is read first
        before, after = _split_by(nodes, {"climbed"})
        return before + [_copied(node) for node in objective.node] + after
    return nodes[:turn] + [_copied(node) for node in objective.node] + nodes[turn:]


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _ascent_step(pullback: ModelProto, objective: GraphProto, step: GraphProto) -> ModelProto:
    """input, origin, cotangent and scalars -> perturbed, output (before the step), pullback."""
    ports = {port.name: port for port in (*pullback.graph.input, *pullback.graph.output)}
    image = ports["input"]
    outputs = [_like(image, "perturbed"), ports["output"], ports["pullback"]]
    nodes = _needed([*_climbing(pullback, objective), *step.node], [port.name for port in outputs])
    inputs = [image, _like(image, "origin"), *_read(nodes, pullback), _scalar("step_size"), _scalar("radius")]
    constants = _constants(pullback.graph, objective, step)
    read = [constants[name] for name in dict.fromkeys(_names_read(nodes)) if name in constants]
    graph = helper.make_graph(nodes, "ascent_step", inputs, outputs, read)
    _describe(graph, pullback.graph.value_info)
    return helper.make_model(graph, opset_imports=pullback.opset_import, ir_version=pullback.ir_version)


def _ascent(pullback: ModelProto, objective: GraphProto, step: GraphProto) -> ModelProto:
    """The whole ascent: a Loop over steps, then the network once more, for the last image's output and score.

    The body holds the weights that it reads as initializers of its own (of the same bytes on disk): ONNX Runtime blocks
    a convolution's layout only where the weight belongs to the convolution's own graph. Values that depend on what no
    step changes, such as 1/T, are computed once, outside.
    """
    ports = {port.name: port for port in (*pullback.graph.input, *pullback.graph.output)}
    constants = _constants(pullback.graph, objective, step)
    image, output = ports["input"], ports["output"]
    climbing = _climbing(pullback, objective)
    nodes = _needed([*climbing, *step.node], ["perturbed", "pullback", "score"])
    given = _read(nodes, pullback)
    runtime = {"step_size", "radius"} | {port.name for port in given if port.name != "cotangent"}
    fixed, varying = _split_by(nodes, {"input", "cotangent"})  # without a gate the pullback reads the latter alone
    weights, scalars = _split_by(fixed, runtime)
    scalars = _needed(fixed, [name for node in scalars for name in node.output])
    body_nodes, inside = _renamed([*weights, *varying], constants, "each/", {"origin": "input"})
    body = helper.make_graph(
        [helper.make_node("Identity", ["turn/going"], ["turn/goes"], name="turn/goes"), *body_nodes],
        "each",
        [
            helper.make_tensor_value_info("turn/index", TensorProto.INT64, []),
            helper.make_tensor_value_info("turn/going", TensorProto.BOOL, []),
            _like(image, "each/input"),
            _like(image, "turn/previous"),
        ],
        [
            helper.make_tensor_value_info("turn/goes", TensorProto.BOOL, []),
            _like(image, "each/perturbed"),
            _like(image, "each/pullback"),
            helper.make_tensor_value_info("each/score", TensorProto.FLOAT, [BATCH]),
        ],
        inside,
    )
    _describe(body, pullback.graph.value_info, "each/")
    loop = [
        helper.make_node("Sub", ["input", "input"], ["none"], name="none"),
        helper.make_node(
            "Loop", ["steps", "", "input", "none"], ["perturbed", "pullback", "scores"], name="ascent", body=body
        ),
    ]
    last, outside = _renamed(_needed(climbing, ["output", "score"]), constants, "last/", {"last/input": "perturbed"})
    end = [
        helper.make_node("Identity", ["last/output"], ["output"], name="output"),
        helper.make_node("Unsqueeze", ["last/score", "first_axis"], ["last/row"], name="last/row"),
        helper.make_node("Concat", ["scores", "last/row"], ["score"], name="score", axis=0),
    ]
    _mark([*body.node[:1], *loop, *end], "step")
    inputs = [image, *given, _scalar("step_size"), _scalar("radius"), _scalar("steps", TensorProto.INT64)]
    scores = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["steps + 1", BATCH])
    outputs = [_like(image, "perturbed"), output, ports["pullback"], scores]
    first_axis = helper.make_tensor("first_axis", TensorProto.INT64, [1], [0])
    shared = [constants[name] for name in dict.fromkeys(_names_read(scalars)) if name in constants]
    graph = helper.make_graph(
        [*scalars, *loop, *last, *end], "ascent", inputs, outputs, [*shared, *outside, first_axis]
    )
    _describe(graph, pullback.graph.value_info, "last/")
    return helper.make_model(graph, opset_imports=pullback.opset_import, ir_version=pullback.ir_version)


def _renamed(
    nodes: list[NodeProto], constants: dict[str, TensorProto], prefix: str, names: dict[str, str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Copies of `nodes` and of the initializers that they read, `prefix` before every name of theirs.

    The values that they do not make, but for the image, keep their names; `names` is applied at the end.
    """
    made = [name for node in nodes for name in node.output]
    read = [name for name in dict.fromkeys(_names_read(nodes)) if name in constants]
    inner = {name: prefix + name for name in (*made, *read, "input")}
    inner = {name: names.get(new, new) for name, new in inner.items()}
    inner.update({name: new for name, new in names.items() if name not in inner})
    copies = [_copied(node) for node in nodes]
    _rename(copies, inner)
    for node in copies:
        node.name = prefix + node.name
    initializers = []
    for name in read:
        initializer = TensorProto()
        initializer.CopyFrom(constants[name])
        initializer.name = inner[name]
        initializers.append(initializer)
    return copies, initializers


def _constants(*graphs: GraphProto) -> dict[str, TensorProto]:
    """All initializers of `graphs` by name."""
    return {initializer.name: initializer for graph in graphs for initializer in graph.initializer}


def _names_read(nodes: Sequence[NodeProto]) -> Iterator[str]:
    """Every value that `nodes` read, the bodies of loops included."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _names_read(attribute.g.node)
            yield from (port.name for port in attribute.g.output)


def _needed(nodes: list[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """Those of `nodes`, in order, that `outputs` depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_names_read([node]))
    return kept[::-1]


def _split_by(nodes: list[NodeProto], names: set[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """(nodes that depend on none of the values `names`, nodes that depend on one)."""
    dependent, without, with_ = set(names), [], []
    for node in nodes:
        if dependent.intersection(_names_read([node])):
            dependent.update(node.output)
            with_.append(node)
        else:
            without.append(node)
    return without, with_


def _read(nodes: list[NodeProto], pullback: ModelProto) -> list[ValueInfoProto]:
    """Those inputs of `pullback`, but for the image, that `nodes` have a use for."""
    read = set(_names_read(nodes))
    return [port for port in pullback.graph.input if port.name in read and port.name != "input"]


def _like(port: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(port)
    copy.name = name
    return copy


def _scalar(name: str, dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [])


def _add_defaults(model: ModelProto, defaults: Mapping[str, Any]) -> None:
    """Inputs with a default as initializers too: a caller may leave them out. (ONNX IR: overridable defaults.)"""
    for port in model.graph.input:
        if port.name in defaults:
            sizes = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
            values = defaults[port.name] if sizes else [defaults[port.name]]
            kind = port.type.tensor_type.elem_type
            model.graph.initializer.append(helper.make_tensor(port.name, kind, sizes, values))
