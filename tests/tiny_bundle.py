"""A bundle of a two-layer network, made node by node with onnx.helper: what the torch-free side is tested on.

`Tiny` computes the same in numpy, from the formulas, so that the tests compare two accounts of one thing.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

from surgeon.bundle.folder import seal
from surgeon.bundle.manifest import (
    Artifact,
    Comparison,
    Defaults,
    GateSite,
    Image,
    Manifest,
    Model,
    Port,
    Recipe,
)

CHANNELS, SIDE, HIDDEN, CLASSES = 3, 8, 16, 5
LABELS = ("tench, Tinca tinca", "goldfish", "tiger cat", "tiger shark", "crane")
SHAPE = ("N", CHANNELS, SIDE, SIDE)
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


class Tiny:
    """The network and its pullback in numpy, float64."""

    def __init__(self, seed: int = 0) -> None:
        random = numpy.random.default_rng(seed)
        self.first = random.normal(size=(CHANNELS * SIDE * SIDE, HIDDEN)).astype(numpy.float32) / 8
        self.second = random.normal(size=(HIDDEN, CLASSES)).astype(numpy.float32) / 2

    def pullback(self, input, cotangent, temperature=0.3, gate="soft"):
        hidden = input.reshape(len(input), -1).astype(numpy.float64) @ self.first
        output = numpy.maximum(hidden, 0) @ self.second
        passed = 1 / (1 + numpy.exp(-hidden / temperature)) if gate == "soft" else hidden > 0
        return output, ((cotangent @ self.second.T * passed) @ self.first.T).reshape(input.shape)

    def ascent(self, input, cotangent, steps, step_size, radius, temperature=0.3):
        here, scores = input.astype(numpy.float64), []
        for _ in range(steps):
            output, pullback = self.pullback(here, cotangent, temperature)
            scores.append((cotangent * output).sum(axis=1))
            length = numpy.sqrt((pullback**2).sum(axis=(1, 2, 3), keepdims=True))
            delta = here + step_size * pullback / numpy.maximum(length, 1e-20) - input
            length = numpy.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
            delta = delta * numpy.minimum(1, radius / numpy.maximum(length, 1e-20))
            here = numpy.clip(input + delta, -1, 1)
        output = self.pullback(here, cotangent, temperature)[0]
        return here, output, pullback, numpy.stack([*scores, (cotangent * output).sum(axis=1)])


def write_tiny(
    folder: Path, gate: str = "soft", objective: str = "logit", verified: bool = True, free: bool = False
) -> Path:
    """Write the bundle into `folder` (made if need be); return it. With `free` it says that it takes any size."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(gate, objective, verified, free)
    facts = manifest.file_facts()
    for name, graph in _graphs(gate, objective).items():
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        helper.set_model_props(model, {"surgeon": facts})
        onnx.checker.check_model(model, full_check=True)
        images = [value for value in (*model.graph.input, *model.graph.output) if free and _is_image(value)]
        for value in images:
            for place, letter in ((2, "H"), (3, "W")):
                value.type.tensor_type.shape.dim[place].dim_param = letter
        onnx.save(model, str(folder / name), save_as_external_data=True, location=f"{name}.bin", size_threshold=256)
    seal(folder, manifest)
    return folder


def _is_image(value: onnx.ValueInfoProto) -> bool:
    return len(value.type.tensor_type.shape.dim) == len(SHAPE)


def _manifest(gate: str, objective: str, verified: bool, free: bool) -> Manifest:
    shape = (*SHAPE[:2], "H", "W") if free else SHAPE
    image = Image(height=SIDE, width=SIDE, resize=10)
    softness = [Port("temperature", "float32", (), "softness of the gates", 0.3)] if gate == "soft" else []
    taken = [] if objective == "energy" else [Port("cotangent", "float32", ("N", CLASSES), "one-hot target")]
    input = Port("input", "float32", shape, "pixels in [-1, 1]")
    output = Port("output", "float32", ("N", CLASSES), "logits")
    pullback = Port("pullback", "float32", shape, "the cotangent, pulled back")
    pace = [Port("step_size", "float32", (), "length of a step", 2.0), Port("radius", "float32", (), "limit", 4.0)]
    perturbed = Port("perturbed", "float32", shape, "the input, changed")
    origin, steps = Port("origin", "float32", shape, "the clean input"), Port("steps", "int64", (), "steps", 5)
    score = Port("score", "float32", ("steps + 1", "N"), "the objective's value")
    artifacts = {
        "pullback.onnx": ((input, Port("cotangent", "float32", ("N", CLASSES), "v"), *softness), (output, pullback)),
        "ascent_step.onnx": ((input, origin, *taken, *softness, *pace), (perturbed, output, pullback)),
        "ascent.onnx": ((input, *taken, *softness, *pace, steps), (perturbed, output, pullback, score)),
    }
    line = Comparison("pullback.onnx", "pullback", "batch 3, T 0.7", 1e-6, 1e-4, "CPUExecutionProvider")
    return Manifest(
        model=Model("tiny", "tests.tiny:net", "random", "MIT", HIDDEN * (CHANNELS * SIDE * SIDE + CLASSES)),
        recipe=Recipe(gate=gate, pool="soft" if gate == "soft" else "hard", objective=objective, dynamic_size=free),
        defaults=Defaults(step_size=2.0, radius=4.0),
        image=image,
        labels=LABELS,
        gates=(
            GateSite(
                "relu", "hidden", "aten.relu.default", "gate", gate, ("N", "((H - 3)//2) + 1" if free else HIDDEN)
            ),
        ),
        artifacts={name: Artifact("onnx", *ports) for name, ports in artifacts.items()},
        versions={"onnx": onnx.__version__},
        verification=(line,) if verified else (),
    )


def _graphs(gate: str, objective: str) -> dict[str, onnx.GraphProto]:
    tiny = Tiny()
    weights = [
        numpy_helper.from_array(tiny.first, "first"),
        numpy_helper.from_array(tiny.second, "second"),
        numpy_helper.from_array(numpy.ascontiguousarray(tiny.first.T), "first_t"),
        numpy_helper.from_array(numpy.ascontiguousarray(tiny.second.T), "second_t"),
        numpy_helper.from_array(numpy.array([1, 2, 3]), "axes"),
        numpy_helper.from_array(numpy.float32([1e-20]).reshape(()), "floor"),
        numpy_helper.from_array(numpy.float32(1).reshape(()), "one"),
        numpy_helper.from_array(numpy.float32(-1).reshape(()), "low"),
        numpy_helper.from_array(numpy.array([-1]), "last"),
        numpy_helper.from_array(numpy.array(True), "true"),
    ]
    input, cotangent = _value("input", SHAPE), _value("cotangent", ("N", CLASSES))
    taken = [] if objective == "energy" else [cotangent]
    soft = gate == "soft"
    softness = [_value("temperature", ())] if soft else []
    pace = [_value("step_size", ()), _value("radius", ())]
    output, pullback = _value("output", ("N", CLASSES)), _value("pullback", SHAPE)
    perturbed, score = _value("perturbed", SHAPE), _value("score", ("S", "N"))
    scalars = {"temperature": 0.3, "step_size": 2.0, "radius": 4.0}
    defaults = {name: numpy_helper.from_array(numpy.float32(value), name) for name, value in scalars.items()}
    defaults["steps"] = numpy_helper.from_array(numpy.array(5), "steps")
    names = [*(["temperature"] if soft else []), "step_size", "radius"]

    def graph(nodes, inputs, outputs, chosen):
        return helper.make_graph(nodes, "tiny", inputs, outputs, weights + [defaults[name] for name in chosen])

    steps = [*_step_nodes("input", "origin", "", soft, objective)]
    return {
        "pullback.onnx": graph(
            _pullback_nodes("input", "cotangent", "", soft),
            [input, cotangent, *softness],
            [output, pullback],
            names[:-2],
        ),
        "ascent_step.onnx": graph(
            steps, [input, _value("origin", SHAPE), *taken, *softness, *pace], [perturbed, output, pullback], names
        ),
        "ascent.onnx": graph(
            _loop_nodes(soft, objective),
            [input, *taken, *softness, *pace, _value("steps", (), _INT)],
            [perturbed, output, pullback, score],
            [*names, "steps"],
        ),
    }


def _value(name, shape, dtype=_FLOAT):
    return helper.make_tensor_value_info(name, dtype, list(shape))


def _node(role, operator, inputs, outputs, **attributes):
    node = helper.make_node(operator, inputs, outputs, **attributes)
    node.metadata_props.add(key="surgeon.role", value=role)
    return node


def _forward_nodes(input, mark):
    return [
        _node("forward", "Flatten", [input], [mark + "flat"]),
        _node("forward", "MatMul", [mark + "flat", "first"], [mark + "hidden"]),
        _node("forward", "Relu", [mark + "hidden"], [mark + "active"]),
        _node("forward", "MatMul", [mark + "active", "second"], [mark + "output"]),
    ]


def _pullback_nodes(input, cotangent, mark, soft):
    gate = (
        [
            _node("backward", "Div", [mark + "hidden", "temperature"], [mark + "scaled"]),
            _node("backward", "Sigmoid", [mark + "scaled"], [mark + "gate"]),
        ]
        if soft
        else [
            _node("backward", "Sign", [mark + "active"], [mark + "gate"]),
        ]
    )
    return [
        *_forward_nodes(input, mark),
        _node("backward", "MatMul", [cotangent, "second_t"], [mark + "at_active"]),
        *gate,
        _node("backward", "Mul", [mark + "at_active", mark + "gate"], [mark + "at_hidden"]),
        _node("backward", "MatMul", [mark + "at_hidden", "first_t"], [mark + "at_flat"]),
        _node("backward", "Shape", [input], [mark + "shape"]),
        _node("backward", "Reshape", [mark + "at_flat", mark + "shape"], [mark + "pullback"]),
    ]


def _step_nodes(input, origin, mark, soft, objective):
    cotangent = mark + "output" if objective == "energy" else "cotangent"

    def step(operator, inputs, output, **attributes):
        return _node("step", operator, inputs, [mark + output], **attributes)

    return [
        *_pullback_nodes(input, cotangent, mark, soft),
        step("ReduceL2", [mark + "pullback", "axes"], "norm", keepdims=1),
        step("Max", [mark + "norm", "floor"], "safe"),
        step("Div", [mark + "pullback", mark + "safe"], "unit"),
        step("Mul", [mark + "unit", "step_size"], "move"),
        step("Add", [input, mark + "move"], "moved"),
        step("Sub", [mark + "moved", origin], "delta"),
        step("ReduceL2", [mark + "delta", "axes"], "length", keepdims=1),
        step("Max", [mark + "length", "floor"], "safe_length"),
        step("Div", ["radius", mark + "safe_length"], "ratio"),
        step("Min", [mark + "ratio", "one"], "shrink"),
        step("Mul", [mark + "delta", mark + "shrink"], "kept"),
        step("Add", [origin, mark + "kept"], "placed"),
        step("Clip", [mark + "placed", "low", "one"], "perturbed"),
    ]


def _score_nodes(output, score, mark, objective):
    if objective == "energy":
        half = helper.make_node("Constant", [], [mark + "half"], value_float=0.5)
        return [
            half,
            _node("step", "ReduceSumSquare", [output, "last"], [mark + "square"], keepdims=0),
            _node("step", "Mul", [mark + "square", mark + "half"], [score]),
        ]
    return [
        _node("step", "Mul", ["cotangent", output], [mark + "hit"]),
        _node("step", "ReduceSum", [mark + "hit", "last"], [score], keepdims=0),
    ]


def _loop_nodes(soft, objective):
    body = helper.make_graph(
        [
            *_step_nodes("b_here", "input", "b_", soft, objective),
            *_score_nodes("b_output", "b_score", "b_", objective),
            helper.make_node("Identity", ["b_go"], ["b_on"]),
        ],
        "body",
        [
            _value("b_count", (), _INT),
            _value("b_go", (), TensorProto.BOOL),
            _value("b_here", SHAPE),
            _value("b_was", SHAPE),
        ],
        [
            _value("b_on", (), TensorProto.BOOL),
            _value("b_perturbed", SHAPE),
            _value("b_pullback", SHAPE),
            _value("b_score", ("N",)),
        ],
    )
    nodes = [
        helper.make_node("Sub", ["input", "input"], ["nothing"]),
        helper.make_node("Loop", ["steps", "true", "input", "nothing"], ["perturbed", "pullback", "scores"], body=body),
        *_forward_nodes("perturbed", "e_"),
        helper.make_node("Identity", ["e_output"], ["output"]),
        *_score_nodes("output", "e_score", "e_", objective),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["e_score", "zero"], ["row"]),
        helper.make_node("Concat", ["scores", "row"], ["score"], axis=0),
    ]
    return nodes
