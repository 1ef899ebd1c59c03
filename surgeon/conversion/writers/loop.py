"""The two ascents in ONNX: pullback, objective and step joined by name, once for a single step and once in a Loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from surgeon.bundle.ports import BATCH
from surgeon.conversion.writers.pullback_graph import describe
from surgeon.conversion.writers.step_graph import mark_step
from surgeon.runtime.graphs import copied, initializers, named, names_read, needed, rename, split_by


def ascent_step(pullback: ModelProto, objective: GraphProto, step: GraphProto) -> ModelProto:
    """input, origin, cotangent and scalars -> perturbed, output (before the step), pullback."""
    ports = {port.name: port for port in (*pullback.graph.input, *pullback.graph.output)}
    image = ports["input"]
    outputs = [named(image, "perturbed"), ports["output"], ports["pullback"]]
    nodes = needed([*_climbing(pullback, objective), *step.node], [port.name for port in outputs])
    inputs = [image, named(image, "origin"), *_inputs_read(nodes, pullback), _scalar("step_size"), _scalar("radius")]
    constants = _constants_read(nodes, initializers(pullback.graph, objective, step))
    return _model(pullback, helper.make_graph(nodes, "ascent_step", inputs, outputs, constants), "")


def ascent(pullback: ModelProto, objective: GraphProto, step: GraphProto) -> ModelProto:
    """The whole ascent: a Loop over steps, then the network once more, for the last image's output and score.

    Values that no step changes, such as 1/T, are computed once, outside the loop.
    """
    ports = {port.name: port for port in (*pullback.graph.input, *pullback.graph.output)}
    constants = initializers(pullback.graph, objective, step)
    image = ports["input"]
    climbing = _climbing(pullback, objective)
    nodes = needed([*climbing, *step.node], ["perturbed", "pullback", "score"])
    read = _inputs_read(nodes, pullback)
    runtime = {"step_size", "radius"} | {port.name for port in read if port.name != "cotangent"}
    fixed, varying = split_by(nodes, {"input", "cotangent"})  # without a gate the pullback reads only the cotangent
    weights, scalars = split_by(fixed, runtime)
    scalars = needed(fixed, [name for node in scalars for name in node.output])
    body = _loop_body(pullback, [*weights, *varying], constants)
    loop = [
        helper.make_node("Sub", ["input", "input"], ["none"], name="none"),
        helper.make_node(
            "Loop", ["steps", "", "input", "none"], ["perturbed", "pullback", "scores"], name="ascent", body=body
        ),
    ]
    last, outside = _renamed(needed(climbing, ["output", "score"]), constants, "last/", {"last/input": "perturbed"})
    end = [
        helper.make_node("Identity", ["last/output"], ["output"], name="output"),
        helper.make_node("Unsqueeze", ["last/score", "first_axis"], ["last/row"], name="last/row"),
        helper.make_node("Concat", ["scores", "last/row"], ["score"], name="score", axis=0),
    ]
    mark_step([*loop, *end])
    inputs = [image, *read, _scalar("step_size"), _scalar("radius"), _scalar("steps", TensorProto.INT64)]
    scores = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["steps + 1", BATCH])
    outputs = [named(image, "perturbed"), ports["output"], ports["pullback"], scores]
    first_axis = helper.make_tensor("first_axis", TensorProto.INT64, [1], [0])
    stored = [*_constants_read(scalars, constants), *outside, first_axis]
    return _model(
        pullback, helper.make_graph([*scalars, *loop, *last, *end], "ascent", inputs, outputs, stored), "last/"
    )


def _loop_body(pullback: ModelProto, nodes: list[NodeProto], constants: Mapping[str, TensorProto]) -> GraphProto:
    """One step: `nodes`, behind "each/", from an image to the next one, its pullback and its score.

    The body holds the weights that it reads as initializers of its own (of the same bytes on disk): ONNX Runtime blocks
    a convolution's layout only where the weight belongs to the convolution's own graph.
    """
    image = next(port for port in pullback.graph.input if port.name == "input")
    step_nodes, inside = _renamed(nodes, constants, "each/", {"origin": "input"})
    goes_on = helper.make_node("Identity", ["turn/going"], ["turn/goes"], name="turn/goes")
    mark_step([goes_on])
    inputs = [
        helper.make_tensor_value_info("turn/index", TensorProto.INT64, []),
        helper.make_tensor_value_info("turn/going", TensorProto.BOOL, []),
        named(image, "each/input"),
        named(image, "turn/previous"),
    ]
    outputs = [
        helper.make_tensor_value_info("turn/goes", TensorProto.BOOL, []),
        named(image, "each/perturbed"),
        named(image, "each/pullback"),
        helper.make_tensor_value_info("each/score", TensorProto.FLOAT, [BATCH]),
    ]
    body = helper.make_graph([goes_on, *step_nodes], "each", inputs, outputs, inside)
    describe(body, pullback.graph.value_info, "each/")
    return body


def _climbing(pullback: ModelProto, objective: GraphProto) -> list[NodeProto]:
    """The pullback's nodes with the objective between output and cotangent, in an order that can run."""
    nodes = [copied(node) for node in pullback.graph.node]
    early = [i for i, node in enumerate(nodes) if "cotangent" in node.input][:1]
    turn = 1 + max(i for i, node in enumerate(nodes) if "output" in node.output)
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == "cotangent":
                node.input[i] = "climbed"
    between = [copied(node) for node in objective.node]
    if early and early[0] < turn:  # a size of the cotangent is read before the output is there
        before, after = split_by(nodes, {"climbed"})
        return [*before, *between, *after]
    return [*nodes[:turn], *between, *nodes[turn:]]


def _renamed(
    nodes: list[NodeProto], constants: Mapping[str, TensorProto], prefix: str, names: Mapping[str, str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Copies of `nodes` and of the initializers that they read, with `prefix` before every name.

    Values from outside keep their names, except the image. `names` is applied at the end.
    """
    computed = [name for node in nodes for name in node.output]
    stored = _constants_read(nodes, constants)
    inner = {name: prefix + name for name in (*computed, *(tensor.name for tensor in stored), "input")}
    inner = {name: names.get(new, new) for name, new in inner.items()}
    inner.update({name: new for name, new in names.items() if name not in inner})
    copies = [copied(node) for node in nodes]
    rename(copies, inner)
    for node in copies:
        node.name = prefix + node.name
    tensors = [copied(tensor) for tensor in stored]
    for tensor in tensors:
        tensor.name = inner[tensor.name]
    return copies, tensors


def _model(pullback: ModelProto, graph: GraphProto, prefix: str) -> ModelProto:
    """`graph` as a model like `pullback`, whose shapes its values have behind `prefix`."""
    describe(graph, pullback.graph.value_info, prefix)
    return helper.make_model(graph, opset_imports=pullback.opset_import, ir_version=pullback.ir_version)


def _constants_read(nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> list[TensorProto]:
    """The `constants` that `nodes` read, each once."""
    return [constants[name] for name in dict.fromkeys(names_read(nodes)) if name in constants]


def _inputs_read(nodes: Sequence[NodeProto], pullback: ModelProto) -> list[ValueInfoProto]:
    """The inputs of `pullback` that `nodes` read, except the image."""
    read = set(names_read(nodes))
    return [port for port in pullback.graph.input if port.name in read and port.name != "input"]


def _scalar(name: str, dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [])
