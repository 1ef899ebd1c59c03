"""What is said of an ONNX graph, beside what the onnx package and PyTorch say of the same file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from surgeon.analysis.inspect.grouping import layers, named, pairs
from surgeon.analysis.inspect.inspection import inspect
from surgeon.analysis.inspect.kernels import support
from surgeon.analysis.inspect.structure import figure_text, module_of_path, read
from surgeon.errors import SurgeonError
from tests.digits import digits
from tests.tiny_bundle import write_tiny

DIGITS = Path(__file__).resolve().parents[2] / "exported" / "digits"
ARTIFACTS = ("pullback.onnx", "ascent_step.onnx", "ascent.onnx")


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_graph(attribute.g)


def value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: list[onnx.NodeProto], inputs: dict[str, list], weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    ends = [value(name, shape) for name, shape in inputs.items()]
    kept = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    made = helper.make_graph(nodes, "graph", ends, [onnx.ValueInfoProto(name=nodes[-1].output[0])], kept)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def exported(module: nn.Module, example: torch.Tensor, path: Path, dynamo: bool) -> Path:
    with pytest.warns(Warning) if not dynamo else _nothing():  # of the older exporter's age
        free = (
            {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
        )
        torch.onnx.export(module.eval(), (example,), path, dynamo=dynamo, input_names=["x"], verbose=False, **free)
    return path


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Odd(nn.Module):
    """Convolutions of all kinds, and products of matrices, two of which know no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Conv2d(8, 8, 3, groups=4, dilation=2, padding=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2, output_padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.deep(self.stem(x))).flatten(2)
        return self.head((x @ x.transpose(1, 2) @ x).mean(2))


@pytest.mark.parametrize("name", ARTIFACTS)
def test_counts_are_those_of_the_onnx_package(name: str) -> None:
    file = load(DIGITS / name)
    graphs = list(every_graph(file.graph))
    found = read(file)
    assert Counter(node.operator for node in found.nodes) == Counter(n.op_type for g in graphs for n in g.node)
    defaults = {one.name for one in file.graph.input}
    weights: dict[object, int] = {}
    for place, graph in enumerate(graphs):
        for one in graph.initializer:
            if one.data_type == TensorProto.FLOAT and not (place == 0 and one.name in defaults):
                beside = {entry.key: entry.value for entry in one.external_data}
                weights[(beside["location"], beside.get("offset")) if beside else (place, one.name)] = math.prod(
                    one.dims
                )
    assert found.parameters == sum(weights.values()) > 10_000
    assert sum(node.parameters for node in found.nodes) == found.parameters


@pytest.mark.parametrize("name", ARTIFACTS)
def test_shapes_are_those_of_the_onnx_package(name: str) -> None:
    stated = onnx.shape_inference.infer_shapes(load(DIGITS / name), data_prop=True)
    known = {
        one.name: tuple(size.dim_value if size.HasField("dim_value") else size.dim_param for size in dims.shape.dim)
        for graph in every_graph(stated.graph)
        for one in (*graph.value_info, *graph.output)
        if (dims := one.type.tensor_type).HasField("shape")
    }
    for node in read(load(DIGITS / name)).nodes:
        expected = known.get(node.outputs[0])
        if expected is not None and not any(str(size).startswith("unk_") for size in expected):
            assert node.shape == expected
            assert node.sizes is None or node.sizes == tuple(1 if size == "N" else size for size in expected)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """`Odd` as PyTorch's older exporter writes it, and its newer one."""
    folder, example = tmp_path_factory.mktemp("odd"), torch.zeros(2, 3, 21, 19)
    return {dynamo: exported(Odd(), example, folder / f"{dynamo}.onnx", dynamo) for dynamo in (False, True)}


def test_multiply_adds_and_parameters_are_those_that_pytorch_counts(odd: dict[bool, Path], tmp_path: Path) -> None:
    for module, shape in ((Odd(), (3, 21, 19)), (digits(), (3, 32, 32))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.zeros(3, *shape))
        example = torch.zeros(2, *shape)
        for dynamo, path in odd.items():
            if not isinstance(module, Odd):
                path = exported(module, example, tmp_path / "digits.onnx", dynamo)
            found = read(load(path))
            assert found.multiply_adds("forward") == counter.get_total_flops() / 2 / 3
            folded = sum(one.num_features for one in module.modules() if isinstance(one, nn.BatchNorm2d))
            assert found.parameters == sum(one.numel() for one in module.parameters()) - folded
    bundle = read(load(DIGITS / "pullback.onnx"))
    assert bundle.multiply_adds("forward") == counter.get_total_flops() / 2 / 3
    by_module = {layer.module: layer.multiply_adds for layer in layers(pairs(bundle))}
    for name, counted in counter.get_flop_counts().items():
        if name.startswith("Digits.") and name != "Digits.features":
            assert by_module.get(name.removeprefix("Digits."), 0) == sum(counted.values()) / 2 / 3


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "expected"),
    [
        (("Gemm", {"transA": 1}), {"x": [7, 6]}, {"w": (7, 5)}, 210),
        (("Gemm", {"transB": 1}), {"x": ["N", 7]}, {"w": (5, 7)}, 35),
        (("MatMul", {}), {"x": ["N", 4, 3, 7]}, {"w": (7, 5)}, 4 * 3 * 7 * 5),
        (("MatMul", {}), {"x": ["N", 4, 3, 7], "w": ["N", 4, 7, 5]}, {}, 4 * 3 * 7 * 5),
        (("MatMul", {}), {"x": [6, 7], "w": [7]}, {}, 42),
        (("Conv", {}), {"x": ["N", 3, "H", 8]}, {"w": (5, 3, 1, 1)}, None),
        (("ConvTranspose", {"strides": [2, 2]}), {"x": ["N", 3, 8, 8]}, {"w": (3, 5, 2, 2)}, 3 * 64 * 5 * 4),
    ],
)
def test_multiply_adds_by_hand(node: tuple, inputs: dict, weights: dict, expected: int | None) -> None:
    made = model([helper.make_node(node[0], ["x", "w"], ["y"], **node[1])], inputs, weights)
    assert [one.multiply_adds for one in read(made).nodes] == [expected]


def test_free_sizes_take_the_numbers_that_are_given() -> None:
    made = model([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": ["N", 3, "H", "W"]}, {"w": (5, 3, 1, 1)})
    assert read(made, {"H": 4, "W": 6}).multiply_adds("forward") == 15 * 24
    (node,) = read(made, input_shape=(3, 4, 6)).nodes
    assert (node.shape, node.sizes, node.bytes) == (("N", 5, "?", "?"), (1, 5, 4, 6), 480)  # as ONNX has it
    fixed = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [8, 3]}, {})
    assert read(fixed).batch == 8 and read(fixed).nodes[0].bytes == 96


def test_what_is_made_of_weights_alone_costs_nothing_and_belongs_to_its_reader() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], name="turned"),
        helper.make_node("MatMul", ["t", "w"], ["square"], name="folded"),
        helper.make_node("MatMul", ["x", "square"], ["y"], name="/head/MatMul"),
    ]
    found = read(model(nodes, {"x": ["N", 7]}, {"w": (5, 7)}))
    assert [node.multiply_adds for node in found.nodes] == [0, 0, 49]
    assert [node.parameters for node in found.nodes] == [0, 0, 35] and found.nodes[1].module == "head"
    (pair,) = [one for one in pairs(found) if one.source == "/head/MatMul"]
    assert [node.name for node in pair.forward] == ["folded", "/head/MatMul"]


def test_a_cotangent_cut_in_pieces_belongs_to_the_backward_pass() -> None:
    """The exporter's optimiser makes a Split of its own, without marks."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="relu"),
        helper.make_node("Split", ["cotangent"], ["a", "b"], name="cut", axis=1, num_outputs=2),
        helper.make_node("Add", ["a", "b"], ["sum"], name="sum"),
    ]
    for node, source, role in ((nodes[0], "relu", "forward"), (nodes[2], "cotangent", "backward")):
        for key, told in (("node", source), ("module", ""), ("role", role)):
            node.metadata_props.add(key=f"surgeon.{key}", value=told)
    found = read(model(nodes, {"x": ["N", 7], "cotangent": ["N", 8]}, {})).nodes
    assert [(node.part, node.source) for node in found[1:]] == [("backward", "cotangent")] * 2


def test_each_node_is_in_one_pair_beside_what_it_gave_rise_to() -> None:
    inspection = inspect(DIGITS)
    found = inspection.pairs()
    file = load(DIGITS / "pullback.onnx").graph
    listed = [node.name for pair in found for node in (*pair.forward, *pair.backward)]
    assert sorted(listed) == sorted(node.name for node in file.node)
    facts = {node.name: {entry.key: entry.value for entry in node.metadata_props} for node in file.node}
    for pair in found:
        for node in (*pair.forward, *pair.backward):
            marks = facts[node.name]
            assert not marks or (pair.source, pair.module) == (marks["surgeon.node"], marks["surgeon.module"])
            assert not marks or (node in pair.forward) == (marks["surgeon.role"] == "forward")
    assert [pair.gate.node for pair in found if pair.gate] == [gate.node for gate in inspection.gates]
    assert [pair.source for pair in found if pair.backward and not pair.forward] == ["temperature"]


def test_an_ascents_layers_are_those_of_its_loop() -> None:
    expected = layers(pairs(read(load(DIGITS / "pullback.onnx"))))
    found = layers(pairs(read(load(DIGITS / "ascent.onnx"))))
    assert {one.module: one.multiply_adds for one in found} == {one.module: one.multiply_adds for one in expected}
    assert pairs(read(load(DIGITS / "ascent.onnx")))[-1].step


def test_modules_of_files_from_elsewhere(odd: dict[bool, Path]) -> None:
    for path in odd.values():
        found = {layer.module: layer for layer in layers(inspect(path).pairs())}
        assert {"stem.0", "stem.1", "deep", "up", "head"} <= set(found)
        assert found["up"].operators == {"ConvTranspose": 1} and found["up"].parameters == 8 * 3 * 9 + 6
        assert found["stem.0"].shape == ("batch", 8, 10, 9)
    assert module_of_path("/layer1/layer1.0/conv1/Conv") == "layer1.0.conv1"
    assert module_of_path("model/block/conv/Conv2D") == "model.block.conv" and module_of_path("Conv_3") == ""


def test_damaged_marks_are_no_modules(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="/head/Relu")
    for text in ("__import__('os')", "[[[[", "['', 3, 'x']", "[]", "(" * 2000):
        del node.metadata_props[:]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
        assert read(model([node], {"x": ["N", 3]}, {})).nodes[0].module == "head"


def test_shapes_that_contradict_each_other_are_left_as_they_are() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    found = read(model(nodes, {"x": ["N", 4]}, {"w": (5, 3)}))
    assert [node.shape for node in found.nodes] == [None, None] and found.multiply_adds("forward") is None
    assert found.bytes("forward") is None


def test_patterns() -> None:
    assert named(None, "") and named("layer1", "layer1.0.conv1") and named("*.conv1", "layer1.0.conv1")
    assert named("relu_[1-3]", "a", ["relu_2"]) and not named("layer1", "layer10") and not named("*", "", [])


@pytest.mark.parametrize(("kind", "verdict"), [(TensorProto.FLOAT, "yes"), (TensorProto.DOUBLE, "no")])
def test_kernels_are_those_that_onnx_runtime_finds(kind: int, verdict: str) -> None:
    import onnxruntime

    ends = [value("x", [1, 3, 8, 8], kind), value("w", [5, 3, 1, 1], kind)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", ends, [value("y", [1, 5, 8, 8], kind)]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (node,) = read(made).nodes
    if support(node, {"": 18}, "cpu") is None:
        pytest.skip("this ONNX Runtime does not list its kernels")
    assert support(node, {"": 18}, "cpu") == verdict
    try:
        onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        runs = "yes"
    except Exception as error:
        runs = "no" if "NOT_IMPLEMENTED" in str(error) else str(error)
    assert runs == verdict


def test_the_artifacts_have_a_kernel_for_everything(tmp_path: Path) -> None:
    for name in ARTIFACTS:
        found = read(load(DIGITS / name))
        assert {support(node, found.opsets, "cpu") for node in found.nodes} <= {"yes", None}
    other = read(load(write_tiny(tmp_path / "tiny") / "ascent.onnx"))
    assert {support(node, other.opsets, "cpu") for node in other.nodes} <= {"yes", None}


def test_embedded_weights_are_the_same_and_stay_where_they_are(tmp_path: Path) -> None:
    beside = load(DIGITS / "pullback.onnx")
    embedded = onnx.load(DIGITS / "pullback.onnx")
    before = embedded.SerializeToString(deterministic=True)
    assert read(embedded) == read(beside)
    assert embedded.SerializeToString(deterministic=True) == before


def test_figures() -> None:
    assert [figure_text(n) for n in (None, 0, 7, 999, 1000, 99_950, 999_499, 4_089_184_256)] == [
        "?", "", "7", "999", "1.00 k", "100 k", "999 k", "4.09 G",
    ]  # fmt: skip


def test_a_file_without_nodes(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), path)
    assert inspect(path).pairs() == ()
    with pytest.raises(SurgeonError, match="There is none"):
        inspect(path).pairs("conv")
