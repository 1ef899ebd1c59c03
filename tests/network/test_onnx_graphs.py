"""Graphs that real ONNX files hold: gates in many spellings, branches, precisions, indexing, computed shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import surgeon
from surgeon.bundle.manifest import Recipe
from surgeon.errors import ConversionError, SurgeonError
from surgeon.network.importer.onnx_file import import_onnx
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error
from tests.onnx_nodes import e, f, i, model, runtime, saved, w
from tests.pullbacks import HARD, SOFT, captured, pullback, random

node = helper.make_node
WEIGHT, SLOPES = w(4, 3, 3, 3), w(4, 1, 1)
CONV = node("Conv", ["x", "weight"], ["z"])
CONSTANTS = {"weight": WEIGHT, "slopes": SLOPES, "zero": e(0.0), "zero1": f(0.0), "six": e(6.0)}
CONSTANTS |= {"zero4": np.zeros((1, 1, 1, 1), np.float32)}


def net(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, Any], **options: Any) -> Any:
    return model(nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()], shape, **options)


def imported(tmp_path: Path, made: onnx.ModelProto, x: Tensor) -> nn.Module:
    """The module that was read, after one more comparison with ONNX Runtime."""
    path = saved(made, tmp_path)
    module = import_onnx(path).module
    rows = np.concatenate([runtime(path, row.float().numpy()) for row in x.split(1)])
    assert np.allclose(module(x.float()).numpy(), rows, atol=1e-5)
    return module


class Gated(nn.Module):
    """A network with these gates side by side behind one convolution, in PyTorch."""

    def __init__(self, *gates: Any) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(x, torch.from_numpy(WEIGHT).to(x.dtype))
        return torch.cat([gate(z) for gate in self.gates], 1)


FUSED = {"domain": "com.microsoft"}
GATES: dict[int, list[tuple[list[onnx.NodeProto], Any]]] = {
    9: [
        ([node("Max", ["zero1", "z"], ["out"])], F.relu),
        ([node("Clip", ["z"], ["out"], min=0.0, max=6.0)], F.relu6),
    ],
    13: [
        ([node("Max", ["z", "zero"], ["out"])], F.relu),
        ([node("Max", ["z", "zero4"], ["out"])], F.relu),
        ([node("Identity", ["zero"], ["o"]), node("Max", ["o", "z"], ["out"])], F.relu),
        ([node("Clip", ["z", "zero"], ["out"])], F.relu),
        ([node("Clip", ["z", "zero", "six"], ["out"])], F.relu6),
        ([node("ThresholdedRelu", ["z"], ["out"], alpha=0.0)], F.relu),
        ([node("LeakyRelu", ["z"], ["out"], alpha=0.2)], lambda z: F.leaky_relu(z, 0.2)),
        ([node("PRelu", ["z", "slopes"], ["out"])], lambda z: F.prelu(z, torch.tensor(SLOPES).flatten().to(z))),
        ([node("FusedConv", ["x", "weight"], ["out"], activation="Relu", **FUSED)], F.relu),
        (
            [node("FusedConv", ["x", "weight"], ["out"], activation="Clip", activation_params=[0.0, 6.0], **FUSED)],
            F.relu6,
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize("opset", GATES)
def test_gates_in_files_are_soft(tmp_path: Path, opset: int) -> None:
    """Every spelling of a gate side by side in one file."""
    nodes = [CONV]
    for place, (spelled, _) in enumerate(GATES[opset]):
        spelled[-1].output[0] = f"out{place}"
        nodes += spelled
    nodes += [node("Concat", [nodes[-1].output[0] for nodes, _ in GATES[opset]], ["out"], axis=1)]
    x, count = random(3, 3, 6, 6), len(GATES[opset])
    module = imported(tmp_path, net(nodes, (3, 6, 6), CONSTANTS, opset=opset), x)
    network = captured(module, x)
    for place, (_, gate) in enumerate(GATES[opset]):
        v = torch.zeros(3, 4 * count, 4, 4, dtype=torch.float64)
        own = v[:, 4 * place : 4 * place + 4]
        own.copy_(random(3, 4, 4, 4, seed=1))
        output, expected = reference_pullback(Gated(gate).eval(), x, own, recipe=SOFT, temperature=0.3)
        returned = module(x)[:, 4 * place : 4 * place + 4]
        assert relative_error(returned, output) < 1e-7  # LeakyRelu keeps its slope in float32
        assert relative_error(pullback(network, x, v, SOFT), expected) < 1e-7


def test_the_larger_of_two_computed_values_is_no_gate(tmp_path: Path) -> None:
    nodes = [CONV, node("Neg", ["z"], ["n"]), node("Max", ["z", "n"], ["out"])]
    x = random(2, 3, 6, 6)
    module = imported(tmp_path, net(nodes, (3, 6, 6), CONSTANTS), x).double()
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(module(leaf).sum(), leaf)
    assert relative_error(pullback(module, x, torch.ones(2, 4, 4, 4).double(), HARD), expected) < 1e-12


PLACES = ((4, 30), (4, 5, 6), (4, 5, 3, 2))
GLOBAL_POOLS: dict[str, tuple[int, Any]] = {
    "GlobalMaxPool": (17, lambda axes: node("GlobalMaxPool", [f"x{axes}"], [f"p{axes}"])),
    "axes": (17, lambda axes: node("ReduceMax", [f"x{axes}"], [f"p{axes}"], axes=[2, 3, 4][:axes])),
    "axes-dropped": (
        13,
        lambda axes: node("ReduceMax", [f"x{axes}"], [f"p{axes}"], axes=[2, -1, -2][:axes], keepdims=0),
    ),
    "input": (18, lambda axes: node("ReduceMax", [f"x{axes}", f"last{axes}"], [f"p{axes}"])),
    "input-dropped": (20, lambda axes: node("ReduceMax", [f"x{axes}", f"last{axes}"], [f"p{axes}"], keepdims=0)),
}


class Pools(nn.Module):
    """The largest of all places of one, two and three dimensions, in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        pools = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
        maps = [x.reshape(len(x), *shape) for shape in PLACES]
        return torch.cat([pool(each, 1).flatten(1) for pool, each in zip(pools, maps, strict=True)], 1)


@pytest.mark.parametrize(("opset", "largest"), GLOBAL_POOLS.values(), ids=GLOBAL_POOLS)
def test_the_largest_of_all_places_is_a_soft_pool(tmp_path: Path, opset: int, largest: Any) -> None:
    nodes, constants = [], {}
    for axes, shape in enumerate(PLACES, 1):
        constants |= {f"last{axes}": i(-1, -2, -3)[:axes], f"shape{axes}": i(0, *shape)}
        nodes += [node("Reshape", ["x", f"shape{axes}"], [f"x{axes}"]), largest(axes)]
        nodes += [node("Flatten", [f"p{axes}"], [f"flat{axes}"])]
    nodes += [node("Concat", ["flat1", "flat2", "flat3"], ["out"], axis=1)]
    x = random(3, 120)
    network = captured(imported(tmp_path, net(nodes, (120,), constants, opset=opset), x), x)
    for axes in range(3):
        v = torch.zeros(3, 12, dtype=torch.float64)
        v[:, 4 * axes : 4 * axes + 4] = random(3, 4, seed=1)
        _, expected = reference_pullback(Pools().eval(), x, v, recipe=SOFT, temperature=0.3)
        assert relative_error(pullback(network, x, v, SOFT), expected) < 1e-12


def branch(nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def test_a_branch_that_is_known_beforehand(tmp_path: Path) -> None:
    """As PyTorch's exporter writes a squeeze of one axis; constants within the branch, and names from outside."""
    floor = node("Constant", [], ["floor"], value=numpy_helper.from_array(e(0.0)))
    sides = {
        "then_branch": branch([floor, node("Max", ["z", "floor"], ["gated"])], "gated"),
        "else_branch": branch([node("Neg", ["z"], ["turned"])], "turned"),
    }
    nodes = [
        CONV,
        node("Shape", ["z"], ["sizes"]),
        node("Gather", ["sizes", "two"], ["height"]),
        node("Equal", ["height", "four"], ["known"]),
        node("If", ["known"], ["out"], **sides),
    ]
    constants = {"weight": WEIGHT, "two": np.array(2), "four": np.array(4)}
    x, v = random(3, 3, 6, 6), random(3, 4, 4, 4, seed=1)
    module = imported(tmp_path, net(nodes, (3, 6, 6), constants), x)
    _, expected = reference_pullback(Gated(F.relu).eval(), x, v, recipe=SOFT, temperature=0.3)
    assert relative_error(pullback(module, x, v, SOFT), expected) < 1e-12
    y = random(2, 3, 7, 7)
    turned = imported(tmp_path, net(nodes, (3, 7, 7), constants), y)
    assert torch.equal(turned(y.float()), -F.conv2d(y.float(), torch.from_numpy(WEIGHT)))
    nodes[1:4] = [node("ReduceMax", ["z"], ["most"], keepdims=0), node("Greater", ["most", "zero"], ["known"])]
    with pytest.raises(ConversionError, match="If out: its condition is computed from the data"):
        import_onnx(saved(net(nodes, (3, 6, 6), CONSTANTS), tmp_path))


def test_branches_that_use_the_same_names(tmp_path: Path) -> None:
    """Of which the second gives what the first made of the data as a known number."""
    gated = branch([node("Relu", ["z"], ["inner"])], "inner")
    known = branch([node("Add", ["six", "zero"], ["inner"])], "inner")
    other = branch([node("Neg", ["z"], ["other"])], "other")
    nodes = [CONV, node("If", ["yes"], ["a"], then_branch=gated, else_branch=other)]
    nodes += [node("If", ["yes"], ["b"], then_branch=known, else_branch=other), node("Add", ["a", "b"], ["out"])]
    constants = CONSTANTS | {"yes": e(True)}
    imported(tmp_path, net(nodes, (3, 6, 6), constants), random(2, 3, 6, 6))


def test_which_values_are_infinite(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Sub", ["x", "r"], ["low"]), node("Reciprocal", ["low"], ["i"])]
    nodes += [node("Neg", ["i"], ["j"]), node("Add", ["x", "one"], ["s"])]
    kinds = {"a": {}, "b": {"detect_negative": 0}, "c": {"detect_positive": 0}}
    for name, options in kinds.items():
        for value in ("i", "j"):
            nodes += [node("IsInf", [value], [f"{name}{value}"], **options)]
            nodes += [node("Where", [f"{name}{value}", "x", "s"], [f"{name}{value}x"])]
    nodes += [node("Concat", [f"{name}{value}x" for name in kinds for value in ("i", "j")], ["out"], axis=1)]
    imported(tmp_path, net(nodes, (5,), {"one": e(1.0)}), random(3, 5))


def test_statistics_of_a_single_sample(tmp_path: Path) -> None:
    """By default over the batch as well, which is freed where the file fixes one of 1, and otherwise is not."""
    nodes, x = [node("MeanVarianceNormalization", ["x"], ["out"])], random(3, 2, 4, 5)
    imported(tmp_path, net(nodes, (2, 4, 5), {}, batch=1), x)
    with pytest.raises(ConversionError, match="mixes the samples"):
        import_onnx(saved(net(nodes, (2, 4, 5), {}), tmp_path))


@pytest.mark.parametrize("batch", [1, "N"])
def test_a_constant_beside_the_channels_of_each_sample(tmp_path: Path, batch: int | str) -> None:
    """As class tokens and coordinates are joined on where the file fixes a batch of 1; of a free one it is refused."""
    nodes = [node("Concat", ["coordinates", "x"], ["a"], axis=1), node("Concat", ["a", "row"], ["out"], axis=-1)]
    made = net(nodes, (3, 6), {"coordinates": w(1, 2, 6), "row": w(1, 5, 1)}, batch=batch)
    if batch == 1:
        x, v = random(3, 3, 6), random(3, 5, 7, seed=1)
        module = imported(tmp_path, made, x)
        assert torch.equal(pullback(module, x, v, HARD), v[:, 2:, :6])
        return
    with pytest.raises(ConversionError, match="Concat"):
        import_onnx(saved(made, tmp_path))


def test_nodes_in_any_order(tmp_path: Path) -> None:
    nodes = [node("Neg", ["z"], ["n"]), node("Add", ["n", "z"], ["zeros"]), node("Add", ["zeros", "z"], ["sum"])]
    sides = {
        "then_branch": branch([node("Relu", ["sum"], ["gated"])], "gated"),
        "else_branch": branch([node("Neg", ["sum"], ["turned"])], "turned"),
    }
    made = net([node("If", ["yes"], ["out"], **sides), *reversed(nodes), CONV], (3, 6, 6), CONSTANTS | {"yes": e(True)})
    x, v = random(3, 3, 6, 6), random(3, 4, 4, 4, seed=1)
    module = imported(tmp_path, made, x)
    _, expected = reference_pullback(Gated(F.relu).eval(), x, v, recipe=SOFT, temperature=0.3)
    assert relative_error(pullback(module, x, v, SOFT), expected) < 1e-12
    circle = net([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])], (3,), {}, outputs=("b",))
    with pytest.raises(SurgeonError, match=r"reads a before it is computed. Mend its circle of nodes"):
        import_onnx(saved(circle, tmp_path))


HALVED = [node("MaxPool", ["r"], ["half"], kernel_shape=[2, 2], strides=[2, 2]), node("Shape", ["half"], ["s0"])]
HALVED += [
    node("Shape", ["r"], ["s"]),
    node("Slice", ["s0", "i0", "i2"], ["nc"]),
    node("Slice", ["s", "i2", "i4"], ["hw"]),
]
HALVED += [node("Concat", ["nc", "hw"], ["size"], axis=0)]
ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric"}
ANY_SIZE: dict[str, list[onnx.NodeProto]] = {
    "nearest": [
        node("Resize", ["r", "", "twice"], ["a"]),
        node("Resize", ["a", "", "smaller"], ["b"]),
        node("Resize", ["b", "", "twice"], ["y"], nearest_mode="ceil", **ASYMMETRIC),
    ],
    "linear": [
        node("Resize", ["r", "", "twice"], ["a"], mode="linear", **ASYMMETRIC),
        node("Resize", ["a", "", "smaller"], ["y"], mode="linear"),
    ],
    "to-sizes": [
        *HALVED,
        node("Resize", ["half", "", "", "size"], ["a"], nearest_mode="floor", **ASYMMETRIC),
        node("Shape", ["a"], ["own"]),
        node("Resize", ["a", "", "", "own"], ["y"], mode="linear"),
    ],
    "windows": [
        node("Pad", ["r", "sides"], ["a"], mode="reflect"),
        node("Pad", ["a", "sides"], ["b"], mode="edge"),
        node("Pad", ["b", "sides"], ["c"], mode="wrap"),
        node("MaxPool", ["c"], ["d"], kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("MaxPool", ["d"], ["y"], kernel_shape=[2, 3], strides=[2, 1], auto_pad="SAME_LOWER"),
    ],
    "blocks": [node("SpaceToDepth", ["r"], ["y"], blocksize=2)],
}


@pytest.mark.parametrize("nodes", ANY_SIZE.values(), ids=ANY_SIZE)
def test_files_for_any_size(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    constants = {
        "weight": WEIGHT,
        "twice": f(1, 1, 2, 3),
        "smaller": f(1, 1, 0.5, 0.7),
        "sides": i(0, 0, 1, 2, 0, 0, 3, 1),
    }
    constants |= {"i0": i(0), "i2": i(2), "i4": i(4)}
    nodes = [CONV, node("Relu", ["z"], ["r"]), *nodes, node("Mul", ["y", "y"], ["out"])]
    path = saved(net(nodes, (3, "H", "W"), constants, opset=19), tmp_path)
    module = import_onnx(path, input_shape=(3, 14, 12)).module.double()
    recipe = Recipe(dynamic_size=True)
    graph = surgeon.rewrite(module, random(2, 3, 14, 12), recipe)
    for size in (
        (14, 12),
        (12, 14),
        *(() if "SpaceToDepth" in {one.op_type for one in nodes} else ((13, 17), (20, 11))),
    ):
        x = random(3, 3, *size)
        expected = runtime(path, x.float().numpy())
        v = random(*expected.shape, seed=1)
        output, pulled = graph(x, v, torch.tensor(0.3, dtype=torch.float64))
        assert np.allclose(output.numpy(), expected, rtol=1e-4, atol=1e-4)
        _, reference = reference_pullback(module, x, v, recipe=recipe, temperature=0.3)
        assert relative_error(pulled, reference) < 1e-6  # of a known size, PyTorch makes a factor of its own


BEST = node("ArgMax", ["x"], ["best"], axis=1, keepdims=1)
MOST = [BEST, node("ReduceMax", ["x"], ["most"], axes=[1], keepdims=1), node("Neg", ["most"], ["less"])]
LAST = [node("Transpose", ["x"], ["last"], perm=[1, 2, 0]), node("GatherND", ["last", "places"], ["picked"])]
LAST += [node("Neg", ["picked"], ["less"])]
PUT, BACK = ["last", "places", "less"], node("Transpose", ["put"], ["out"], perm=[2, 0, 1])
INDEXED = {
    "ScatterND": ([*LAST, node("ScatterND", PUT, ["put"]), BACK], 17),
    "ScatterND-add": ([*LAST, node("ScatterND", PUT, ["put"], reduction="add"), BACK], 17),
    "ScatterElements": ([*MOST, node("ScatterElements", ["x", "best", "less"], ["out"], axis=1)], 17),
    "ScatterElements-add": (
        [*MOST, node("ScatterElements", ["x", "best", "less"], ["out"], axis=1, reduction="add")],
        17,
    ),
    "Scatter": ([*MOST, node("Scatter", ["x", "best", "less"], ["out"], axis=1)], 9),
    "GatherND": (
        [BEST, node("Transpose", ["best"], ["b"], perm=[0, 2, 1]), node("GatherND", ["x", "b"], ["out"], batch_dims=1)],
        17,
    ),
}


@pytest.mark.parametrize(("nodes", "opset"), INDEXED.values(), ids=INDEXED)
def test_picking_and_putting(tmp_path: Path, nodes: list[onnx.NodeProto], opset: int) -> None:
    x = random(3, 5, 5)
    places = i(0, 4, 2, 1, 3, -1).reshape(3, 2)
    module = imported(tmp_path, net(nodes, (5, 5), {"places": places}, opset=opset), x)
    v = random(3, *module(x.float()).shape[1:], seed=1)
    _, expected = reference_pullback(module.double(), x, v, recipe=HARD, temperature=0.3)
    assert relative_error(pullback(module, x, v, HARD), expected) < 1e-12


def test_weights_and_inputs_in_other_precisions(tmp_path: Path) -> None:
    x, v = random(3, 3, 6, 6), random(3, 4, 4, 4, seed=1)
    weight = WEIGHT.astype(np.float16)
    nodes = [CONV, node("Clip", ["z", "low", "high"], ["out"])]
    constants = {"weight": weight, "low": np.array(0, np.float16), "high": np.array(6, np.float16)}
    half = net(nodes, (3, 6, 6), constants)
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    half.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    cast = [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("Conv", ["h", "weight"], ["z"])]
    cast += [node("Clip", ["z", "low", "high"], ["c"]), node("Cast", ["c"], ["out"], to=TensorProto.FLOAT)]
    brain = net(
        [node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT), CONV, node("Relu", ["z"], ["out"])], (3, 6, 6), {}
    )
    brain.graph.initializer.append(
        helper.make_tensor("stored", TensorProto.BFLOAT16, WEIGHT.shape, weight.ravel().tolist())
    )
    for made in (half, net(cast, (3, 6, 6), constants), brain):
        module = import_onnx(saved(made, tmp_path)).module
        assert module(x.float()).dtype == torch.float32
        _, expected = reference_pullback(module.double(), x, v, recipe=SOFT, temperature=0.3)
        assert relative_error(pullback(module, x, v, SOFT), expected) < 1e-12
    double = net(
        [node("MatMul", ["x", "m"], ["z"]), node("Relu", ["z"], ["out"])], (4,), {"m": w(4, 3).astype(np.float64)}
    )
    double.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    double.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    path = saved(double, tmp_path)
    y = random(3, 4)
    assert np.allclose(import_onnx(path).module(y.float()).numpy(), runtime(path, y.numpy()), atol=1e-5)
    double.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(ConversionError, match=r"it takes x \(bfloat16\)"):
        import_onnx(saved(double, tmp_path))


def test_weights_that_are_stored_as_whole_numbers(tmp_path: Path) -> None:
    """For each channel in another scale, and for all in one; what is computed from the data is refused still."""
    whole = np.round(WEIGHT * 50).astype(np.int8)
    constants = {"q": whole, "scales": f(0.01, 0.02, 0.03, 0.04), "zeros": np.array([3, -4, 0, 1], np.int8)}
    constants |= {"b": np.array([100, -200, 3, 4], np.int32), "scale": e(0.01), "zero": np.array(3, np.int8)}
    nodes = [
        node("DequantizeLinear", ["q", "scales", "zeros"], ["w"], axis=0),
        node("DequantizeLinear", ["b", "scale"], ["bias"]),
        node("Conv", ["x", "w", "bias"], ["z"]),
        node("Relu", ["z"], ["out"]),
    ]
    x = random(3, 3, 6, 6)
    module = imported(tmp_path, net(nodes, (3, 6, 6), constants), x)
    assert [tuple(weight.shape) for weight in module.parameters()] == [(4, 3, 3, 3), (4,)]
    nodes[0] = node("DequantizeLinear", ["q", "scale", "zero"], ["w"])
    imported(tmp_path, net(nodes, (3, 6, 6), constants), x)
    nodes[3:] = [node("QuantizeLinear", ["z", "scale", "zero"], ["r"])]
    nodes += [node("DequantizeLinear", ["r", "scale", "zero"], ["out"])]
    with pytest.raises(ConversionError, match=r"DequantizeLinear \(1: rounds to whole numbers"):
        import_onnx(saved(net(nodes, (3, 6, 6), constants), tmp_path))


def test_shapes_computed_in_the_file_keep_the_batch_open(tmp_path: Path) -> None:
    nodes = [
        CONV,
        node("Relu", ["z"], ["r"]),
        node("Shape", ["r"], ["sizes"]),
        node("Size", ["r"], ["all"]),
        node("Cast", ["sizes"], ["real"], to=TensorProto.FLOAT),
        node("Gather", ["real", "first"], ["real_n"]),
        node("Cast", ["real_n"], ["n"], to=TensorProto.INT64),
        node("Div", ["all", "n"], ["each"]),
        node("Unsqueeze", ["n", "zero"], ["n1"]),
        node("Unsqueeze", ["each", "zero"], ["each1"]),
        node("Concat", ["n1", "each1"], ["target"], axis=0),
        node("Reshape", ["r", "target"], ["flat"]),
        node("Expand", ["half", "target"], ["halves"]),
        node("Range", ["first", "each", "one"], ["places"]),
        node("Cast", ["places"], ["weights"], to=TensorProto.FLOAT),
        node("Mul", ["flat", "weights"], ["weighed"]),
        node("Mul", ["weighed", "halves"], ["scaled"]),
        node("ArgMax", ["scaled"], ["best"], axis=1, keepdims=0),
        node("OneHot", ["best", "depth", "values"], ["hot"]),
        node("Add", ["scaled", "hot"], ["out"]),
    ]
    constants = {"weight": WEIGHT, "first": np.array(0), "one": np.array(1), "zero": i(0), "half": f(0.5)}
    constants |= {"depth": i(64), "values": f(-1, 2)}
    x, v = random(3, 3, 6, 6), random(3, 64, seed=1)
    module = imported(tmp_path, net(nodes, (3, 6, 6), constants), x)
    weights = torch.arange(64) * 0.5
    reference = Gated(lambda z: F.relu(z).flatten(1) * weights).eval()
    _, expected = reference_pullback(reference, x, v, recipe=SOFT, temperature=0.3)
    assert relative_error(pullback(module, x, v, SOFT), expected) < 1e-12


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        (
            [node("LSTM", ["x"], ["l"]), node("QuantizeLinear", ["l"], ["out"])],
            ConversionError,
            r"LSTM \(1: recurrent\), QuantizeLinear \(1: rounds to whole numbers, which have no gradient\)",
        ),
        ([node("Scaler", ["x"], ["out"], domain="ai.onnx.ml")], ConversionError, r"ai.onnx.ml::Scaler \(1\)"),
        ([node("Attention", ["x"], ["out"], **FUSED)], ConversionError, r"com.microsoft::Attention \(1\)"),
        (
            [node("Constant", [], ["c"]), node("Add", ["x", "c"], ["out"])],
            SurgeonError,
            "the constant c of net.onnx has no value. Mend the file",
        ),
        (
            [node("QuantizeLinear", ["x", "six"], ["q"]), node("DequantizeLinear", ["q", "six"], ["out"])],
            ConversionError,
            r"QuantizeLinear \(1: rounds to whole numbers, which have no gradient\)",
        ),
        ([node("NonZero", ["x"], ["out"])], ConversionError, "NonZero out: its inputs are computed from the data"),
        (
            [node("FusedConv", ["x", "weight"], ["out"], activation="Mish", **FUSED)],
            ConversionError,
            "the activation Mish. Use one of Relu",
        ),
        ([CONV, node("Dropout", ["z", "six", "yes"], ["out"])], ConversionError, "dropout in training mode"),
        (
            [CONV, node("BatchNormalization", ["z", *["four"] * 4], ["out", "m", "v"], training_mode=1)],
            ConversionError,
            "batch normalisation in training mode",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, nodes: list[onnx.NodeProto], error: type[SurgeonError], message: str) -> None:
    constants = {"weight": WEIGHT, "six": e(0.5), "yes": e(True), "four": w(4, shift=9)}
    with pytest.raises(error, match=message):
        import_onnx(saved(net(nodes, (3, 6, 6), constants), tmp_path))


def test_old_files(tmp_path: Path) -> None:
    """IR version 3 lists weights as inputs; five outputs of a batch norm mean training before opset 14."""
    made = net([CONV, node("Relu", ["z"], ["out"])], (3, 6, 6), {"weight": WEIGHT}, opset=9)
    made.ir_version = 3
    made.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, WEIGHT.shape))
    made.opset_import.append(helper.make_opsetid("never.used", 1))
    x = random(2, 3, 6, 6)
    assert imported(tmp_path, made, x)(x.float()).shape == (2, 4, 4, 4)
    norm = node("BatchNormalization", ["z", *["four"] * 4], ["out", "a", "b", "c", "d"])
    made = net([CONV, norm], (3, 6, 6), {"weight": WEIGHT, "four": w(4, shift=9)}, opset=9)
    with pytest.raises(ConversionError, match="batch normalisation in training mode"):
        import_onnx(saved(made, tmp_path))
    del made.graph.output[:]
    with pytest.raises(ConversionError, match="has no output"):
        import_onnx(saved(made, tmp_path))
