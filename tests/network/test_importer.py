"""Networks from ONNX files, node by node and whole, against ONNX Runtime, autograd, and the networks they came from."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from surgeon.network.importer.onnx_file import import_onnx
from surgeon.network.importer.registry import FOLDED, OPERATORS, folded, operator
from surgeon.network.sources import resolve
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error
from tests import networks, onnx_nodes
from tests.onnx_nodes import Node, f, i, model, model_of, runtime, saved, w
from tests.pullbacks import HARD, SOFT, captured, pullback, random


def cases(table: dict[str, list[Node]]) -> list[Any]:
    return [pytest.param(k, node, id=f"{k}-{at}") for k, nodes in table.items() for at, node in enumerate(nodes)]


@pytest.mark.parametrize(("kind", "node"), cases(onnx_nodes.NODES))
def test_every_operator_does_what_the_runtime_does(tmp_path: Path, kind: str, node: Node) -> None:
    path = saved(model_of(kind, node), tmp_path)
    x = np.random.default_rng(1).normal(node.x.shift, node.x.scale, (3, *node.x.shape)).astype(np.float32)
    found = import_onnx(path).module(torch.from_numpy(x)).numpy()
    expected = np.concatenate([runtime(path, row) for row in np.split(x, 3)])  # some nodes fix a batch of 1
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "node"), cases(onnx_nodes.FOLDED))
def test_every_operator_on_known_numbers_does(tmp_path: Path, kind: str, node: Node) -> None:
    path = saved(model_of(kind, node), tmp_path)
    x = np.ones((3, 1), np.float32)
    found = import_onnx(path).module(torch.from_numpy(x)).numpy()
    expected = runtime(path, x)
    assert found.shape == expected.shape and np.allclose(found, expected)


def test_every_operator_has_a_sample() -> None:
    assert set(onnx_nodes.NODES) == set(OPERATORS)
    assert set(onnx_nodes.FOLDED) == set(FOLDED)


def test_registering_an_operator_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="Relu is registered already: relu"):
        operator("Relu")(lambda x: x)
    with pytest.raises(ValueError, match="Cast is registered already"):
        folded("Cast")(lambda x: x)


def test_comparisons_and_picking(tmp_path: Path) -> None:
    """What takes booleans, indices or shapes that other nodes made."""
    node = helper.make_node
    nodes = [
        node("Greater", ["x", "low"], ["g"]),
        node("Less", ["x", "high"], ["l"]),
        node("And", ["g", "l"], ["between"]),
        node("Not", ["between"], ["outside"]),
        node("Xor", ["g", "l"], ["one"]),
        node("Or", ["outside", "one"], ["either"]),
        node("Mul", ["x", "high"], ["scaled"]),
        node("Where", ["either", "x", "scaled"], ["chosen"]),
        node("ArgMax", ["x"], ["best"], axis=2, keepdims=1),
        node("GatherElements", ["chosen", "best"], ["picked"], axis=2),
        node("Shape", ["x"], ["sizes"]),
        node("ConstantOfShape", ["sizes"], ["twos"], value=numpy_helper.from_array(f(2.0))),
        node("Add", ["picked", "twos"], ["sum"]),
        node("Gather", ["sizes", "first"], ["n"]),
        node("Unsqueeze", ["n", "first"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["sum", "target"], ["out"]),
    ]
    constants = {"low": f(-0.5), "high": f(0.7), "first": np.array(0), "rest": i(-1)}
    made = model(nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()], (3, 5))
    for unsqueeze in made.graph.node:
        if unsqueeze.op_type == "Unsqueeze":
            unsqueeze.input[1] = "zero"
    made.graph.initializer.append(numpy_helper.from_array(i(0), "zero"))
    path = saved(made, tmp_path)
    x = np.random.default_rng(2).normal(size=(4, 3, 5)).astype(np.float32)
    module = import_onnx(path).module
    assert np.allclose(module(torch.from_numpy(x)).numpy(), runtime(path, x))
    program = torch.export.export(module, (torch.zeros(2, 3, 5),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    assert np.allclose(program.module()(torch.from_numpy(x)).numpy(), runtime(path, x))


def test_picking_by_several_indices(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["last"], perm=[1, 2, 0]),
        helper.make_node("GatherND", ["last", "places"], ["picked"]),
        helper.make_node("Transpose", ["picked"], ["out"], perm=[1, 0]),
    ]
    places = numpy_helper.from_array(i(0, 4, 2, 1, 3, 3).reshape(3, 2), "places")
    path = saved(model(nodes, [places], (4, 5)), tmp_path)
    x, v = random(3, 4, 5), random(3, 3, seed=1)
    module = import_onnx(path).module
    assert np.allclose(module(x).numpy(), runtime(path, x.float().numpy()))
    _, expected = reference_pullback(module, x, v, recipe=HARD, temperature=0.3)
    assert relative_error(pullback(module, x, v, HARD), expected) < 1e-12


class Mixed(nn.Module):
    """Gates and pools of every kind; views that ask for the batch, concatenation."""

    input_shape = (3, 17, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.ceil = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.leaky, self.slopes = nn.LeakyReLU(0.2), nn.PReLU(8)
        self.head = nn.Linear(2 * 8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.leaky(self.up(self.ceil(self.depthwise(4 * x))))[:, :, :h, :w]
        z = F.avg_pool2d(self.slopes(x), 3, 1, 1)
        pooled = F.avg_pool2d(torch.cat([x + y, z], 1), 2, 2, 1, count_include_pad=False)
        return self.head(pooled.view(n, -1))


def exported(module: nn.Module, path: Path, opset: int, dynamo: bool, fixed: bool = False) -> None:
    """By PyTorch's own exporters, with a dynamic batch, or with a batch of 1."""
    x = torch.randn(1 if fixed else 2, *module.input_shape)
    free: dict[str, Any] = {"dynamic_shapes": ({0: "n"},)} if dynamo else {"dynamic_axes": {"pixels": {0: "n"}}}
    names = {"input_names": ["pixels"], "output_names": ["scores"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.float(), (x,), path, dynamo=dynamo, opset_version=opset, **names, **({} if fixed else free)
        )


@pytest.mark.parametrize(
    ("opset", "dynamo", "fixed"),
    [
        (11, False, False),
        (13, False, True),
        (17, False, False),
        (18, True, False),
        (20, False, False),
        (20, True, True),
    ],
)
def test_pullbacks_of_torch_networks(tmp_path: Path, opset: int, dynamo: bool, fixed: bool) -> None:
    network = networks.build(Mixed)
    exported(network, tmp_path / "net.onnx", opset, dynamo, fixed)
    found = import_onnx(tmp_path / "net.onnx")
    assert (found.input_name, found.output_name, found.input_shape) == ("pixels", "scores", Mixed.input_shape)
    x, v = random(3, *Mixed.input_shape), random(3, 5, seed=1)
    _, expected = reference_pullback(network.double(), x, v, recipe=SOFT, temperature=0.3)
    assert relative_error(pullback(found.module, x, v, SOFT), expected) < 1e-5
    for recipe in (SOFT, HARD):
        _, expected = reference_pullback(network, x, v, recipe=recipe, temperature=0.3)
        _, oracle = reference_pullback(found.module, x, v, recipe=recipe, temperature=0.3)
        assert relative_error(oracle, expected) < 1e-5


def to_multiples_of_four(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[3] % 4, (4 - x.shape[2] % 4) // 2, 1), value=0.5)


PADDINGS = {
    "zeros": nn.ZeroPad2d((1, 2, 0, 3)),
    "reflected": nn.ReflectionPad2d((1, 2, 0, 3)),
    "replicated": nn.ReplicationPad2d((1, 2, 0, 3)),
    "computed from the shape": to_multiples_of_four,
}


class Padded(nn.Module):
    input_shape = (3, 9, 7)

    def __init__(self, padding: Any) -> None:
        super().__init__()
        self.padding, self.conv = padding, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.padding(x.square()).relu())


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("opset", [11, 17])
def test_paddings_as_torch_computes_them_in_the_file(tmp_path: Path, padding: Any, opset: int) -> None:
    network = Padded(padding).eval()
    exported(network, tmp_path / "net.onnx", opset, dynamo=False)
    module = import_onnx(tmp_path / "net.onnx").module
    x, v = random(3, *Padded.input_shape), random(*network(torch.zeros(3, *Padded.input_shape)).shape, seed=1)
    _, expected = reference_pullback(network.double(), x, v, recipe=SOFT, temperature=0.3)
    assert relative_error(pullback(module, x, v, SOFT), expected) < 1e-12


SLOW = [
    pytest.param(name, 224, marks=pytest.mark.slow)
    for name in ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "zfnet512")
]


@pytest.mark.parametrize(("name", "side"), [("squeezenet", 48), *SLOW])
def test_a_light_model_by_finite_differences(tmp_path: Path, name: str, side: int) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    path = saved(onnx_nodes.with_random_weights(onnx.load(folder / f"light_{name}.onnx"), side), tmp_path)
    module = import_onnx(path).module  # it fixes a batch of 1, which its import frees
    x, v = random(1, 3, side, side), random(*module(torch.zeros(1, 3, side, side)).shape, seed=1)
    network = captured(module, x)
    gradient = pullback(network, x, v, HARD)
    for seed in range(3):
        direction, step = random(*x.shape, seed=seed), 1e-7
        with torch.no_grad():
            slope = ((module(x + step * direction) - module(x - step * direction)) * v).sum() / (2 * step)
        error = abs(slope / (gradient * direction).sum() - 1)
        print(f"light {name}: hard pullback from finite differences: {error:.1e}")
        assert error < 1e-4
    _, expected = reference_pullback(module, x, v, recipe=SOFT, temperature=0.3)
    error = relative_error(pullback(network, x, v, SOFT), expected)
    print(f"light {name}: soft pullback from autograd: {error:.1e}")
    assert error < 1e-4


def tensorflow_style(padding: str = "SAME_UPPER") -> onnx.ModelProto:
    """NHWC in, NCHW between transposes, padding by name, a mean over axes, a matrix product."""
    node, pool = helper.make_node, {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": padding}
    nodes = [
        node("Transpose", ["x"], ["nchw"], name="model/in", perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "kernel"], ["c"], name="model/conv", strides=[2, 2], auto_pad=padding),
        node("Relu", ["c"], ["r"], name="model/relu"),
        node("MaxPool", ["r"], ["p"], name="model/pool", **pool),
        node("Transpose", ["p"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("Mul", ["nhwc", "scale"], ["scaled"]),
        node("Clip", ["scaled", "zero", "six"], ["clipped"], name="model/relu6"),
        node("ReduceMean", ["clipped"], ["mean"], axes=[1, 2], keepdims=0),
        node("MatMul", ["mean", "dense"], ["m"]),
        node("Add", ["m", "bias"], ["out"]),
    ]
    constants = {
        "kernel": w(6, 3, 3, 3), "scale": w(6, shift=2), "zero": onnx_nodes.e(0.0), "six": onnx_nodes.e(6.0),
        "dense": w(6, 4), "bias": w(4),
    }  # fmt: skip
    return model(nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()], (12, 13, 3))


class TensorFlowStyle(nn.Module):
    """The same network, as one writes it in PyTorch: SAME pads (0, 1) of 12 and (1, 1) of 13, and the pool likewise."""

    def forward(self, x: Tensor) -> Tensor:
        weights = [torch.from_numpy(value).double() for value in (w(6, 3, 3, 3), w(6, shift=2), w(6, 4), w(4))]
        y = F.relu(F.conv2d(F.pad(x.movedim(-1, 1), (1, 1, 0, 1)), weights[0], stride=2))
        y = F.max_pool2d(F.pad(y, (1, 1, 0, 1), value=-1e30), 3, 2)  # 6 by 7: padding (0, 1) and (1, 1)
        return F.relu6(y.movedim(1, -1) * weights[1]).mean((1, 2)) @ weights[2] + weights[3]


def test_a_network_in_the_way_of_tensorflow(tmp_path: Path) -> None:
    found = import_onnx(saved(tensorflow_style(), tmp_path))
    x, v = random(3, 12, 13, 3), random(3, 4, seed=1)
    network = captured(found.module, x)
    for recipe in (SOFT, HARD):
        output, expected = reference_pullback(TensorFlowStyle().eval(), x, v, recipe=recipe, temperature=0.3)
        assert relative_error(found.module.double()(x), output) < 1e-6
        error = relative_error(pullback(network, x, v, recipe), expected)
        print(f"NHWC: {recipe.gate} pullback from the same network in PyTorch: {error:.1e}")
        assert error < 1e-6


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        *(("MaxPool", 5), ("MaxPool", 6), ("AveragePool", 4), ("Pad", 4), ("Slice", 2), ("Resize", 8), ("LRN", 0)),
        *(("ConvTranspose", 1), ("AveragePool", 8), ("LpPool", 1), ("GlobalLpPool", 0), ("Div", 0), ("CumSum", 3)),
        *(("Trilu", 0), ("TopK", 0), ("Einsum", 1), ("ReduceProd", 0), ("Upsample", 2), ("Resize", 15), ("Resize", 17)),
    ],
)
def test_pullbacks_of_operators_that_torch_writes_otherwise(tmp_path: Path, kind: str, at: int) -> None:
    sample = onnx_nodes.NODES[kind][at]
    module = import_onnx(saved(model_of(kind, sample), tmp_path)).module.double()
    x = random(3, *sample.x.shape) * sample.x.scale + sample.x.shift
    v = torch.randn_like(module(x))
    recipe = SOFT if kind == "MaxPool" else HARD
    _, expected = reference_pullback(module, x, v, recipe=recipe, temperature=0.3)
    assert relative_error(pullback(module, x, v, recipe), expected) < 1e-8


RELU6_WEIGHT = np.random.default_rng(5).standard_normal((4, 3, 3, 3)).astype(np.float32)


def relu6(*nodes: NodeProto) -> ModelProto:
    """A convolution's output z, and y, which `nodes` make of it and of the numbers zero and six."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], ["z"]),
            *nodes,
            helper.make_node("GlobalAveragePool", ["y"], ["out"]),
        ],
        "relu6",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 1, 1])],
        [
            numpy_helper.from_array(RELU6_WEIGHT, "weight"),
            *(numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 1.5))),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


class PlainRelu6(nn.Module):
    """The same network, with one clamp."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.from_numpy(RELU6_WEIGHT).double()
        return F.hardtanh(F.conv2d(x, weight), 0, 1.5).mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    "written",
    [
        [("Max", ["z", "zero"]), ("Min", ["a", "six"])],
        [("Min", ["z", "six"]), ("Max", ["a", "zero"])],
        [("Relu", ["z"]), ("Min", ["a", "six"])],
        [("Relu", ["z"]), ("Clip", ["a", "", "six"])],
        [("Relu", ["z"]), ("Clip", ["a", "zero", "six"])],
    ],
    ids=str,
)
def test_a_relu6_in_other_words(tmp_path: Path, written: list[tuple[str, list[str]]]) -> None:
    nodes = [helper.make_node(kind, read, [made]) for (kind, read), made in zip(written, ("a", "y"), strict=True)]
    x, v = random(3, 3, 8, 8), random(3, 4, 1, 1, seed=1)
    module = import_onnx(saved(relu6(*nodes), tmp_path)).module
    _, expected = reference_pullback(PlainRelu6().eval(), x, v, recipe=SOFT, temperature=0.3)
    assert torch.allclose(pullback(module, x, v, SOFT), expected, rtol=1e-12, atol=1e-14)


OPSETS = [(9, False), (11, False), (13, False), (17, False), (18, True), (20, False), (20, True)]
SLOW_EXPORTS = [
    pytest.param(name, 64, opset, dynamo, marks=pytest.mark.slow)
    for name in ("resnet18", "mobilenet_v2", "densenet121", "googlenet", "squeezenet1_1", "shufflenet_v2_x1_0")
    for opset, dynamo in OPSETS
]


@pytest.mark.parametrize(("name", "side", "opset", "dynamo"), [("resnet18", 32, 11, False), *SLOW_EXPORTS])
def test_pullbacks_of_torchvision_networks(tmp_path: Path, name: str, side: int, opset: int, dynamo: bool) -> None:
    shape = (3, side, side)
    network = resolve(name, weights="random", input_shape=shape, preprocess="none").module
    network.input_shape = shape
    exported(network, tmp_path / "net.onnx", opset, dynamo, fixed=opset == 13 or (opset, dynamo) == (20, True))
    found = import_onnx(tmp_path / "net.onnx")
    x, v = random(2, *shape), random(2, 1000, seed=1)
    _, expected = reference_pullback(network.double(), x, v, recipe=SOFT, temperature=0.3)
    error = relative_error(pullback(found.module, x, v, SOFT), expected)
    print(f"{name}: soft pullback from opset {opset}, {'dynamo' if dynamo else 'TorchScript'}: {error:.1e}")
    assert error < 1e-4
