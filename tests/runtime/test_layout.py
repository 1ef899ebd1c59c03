"""The blocked layout of the ONNX artifacts: the same values, and no way out of ONNX Runtime's blocks at the gates."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper

from surgeon.runtime.tuning.blocked import keep_blocked
from tests import networks
from tests.onnx_nodes import optimised


@pytest.fixture(scope="module")
def bundles(exported) -> dict[str, Path]:
    return {layout: exported(networks.blocks, layout=layout) for layout in ("blocked", "plain")}


@pytest.mark.parametrize("artifact", ["pullback.onnx", "ascent_step.onnx", "ascent.onnx"])
def test_the_blocked_graph_leaves_the_layout_only_for_operators_that_have_no_blocked_form(
    bundles: dict[str, Path], artifact: str, tmp_path: Path
) -> None:
    found = {layout: optimised(bundle / artifact, tmp_path) for layout, bundle in bundles.items()}
    if not found["plain"]["ReorderOutput"]:
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    # Into two strided adjoints and into the mean; ascent.onnx holds another forward pass, with another mean.
    assert found["blocked"]["ReorderOutput"] == (4 if artifact == "ascent.onnx" else 3)
    assert found["plain"]["ReorderOutput"] > found["blocked"]["ReorderOutput"] + 3
    assert found["blocked"]["Clip"] < found["plain"]["Clip"]  # it is part of a convolution


def test_both_layouts_have_the_same_values(bundles: dict[str, Path]) -> None:
    x = np.random.default_rng(0).normal(size=(3, 3, 17, 17)).astype(np.float32)
    found = {}
    for layout, bundle in bundles.items():
        session = onnxruntime.InferenceSession(bundle / "pullback.onnx", providers=["CPUExecutionProvider"])
        given = {"input": x, "cotangent": np.eye(5, dtype=np.float32)[[3, 0, 4]], "temperature": np.float32(0.7)}
        found[layout] = session.run(None, {key: np.asarray(value) for key, value in given.items()})
    for blocked, plain in zip(found["blocked"], found["plain"], strict=True):
        np.testing.assert_allclose(blocked, plain, rtol=1e-4, atol=1e-6)


def model(*made: NodeProto, shape: tuple[str | int, ...] = ("N", 32, 5, 4)) -> onnx.GraphProto:
    """A graph from x, [N, 3, 5, 4], and the scalar t to y, in which a, b, c and y are of `shape`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 5, 4])
    t = helper.make_tensor_value_info("t", TensorProto.FLOAT, [])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"]
    values.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    return helper.make_graph(made, "model", [x, t], [y], value_info=values)


CONV = helper.make_node("Conv", ["x", "w"], ["a"])
SCALAR = helper.make_node("Reciprocal", ["t"], ["s"])
OUTSIDE = helper.make_node("ConvTranspose", ["x", "w"], ["b"])


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (model(CONV, SCALAR, helper.make_node("Mul", ["a", "s"], ["y"])), {"broadcast_scale": 1}),
        (model(CONV, SCALAR, helper.make_node("Mul", ["s", "a"], ["y"])), {"broadcast_scale": 1}),
        (model(CONV, OUTSIDE, helper.make_node("Add", ["b", "a"], ["y"])), {"reblock": 1}),
        (
            model(CONV, helper.make_node("Clip", ["a"], ["b"]), helper.make_node("Add", ["a", "b"], ["y"])),
            {"fuse_activation": 1},
        ),
        # A convolution that only the clip reads is fused without help.
        (model(CONV, helper.make_node("Clip", ["a"], ["y"])), {}),
        # Nothing is blocked: a part of a block, a map from elsewhere, a size that is known at runtime alone.
        (model(CONV, SCALAR, helper.make_node("Mul", ["a", "s"], ["y"]), shape=("N", 24, 5, 4)), {}),
        (model(OUTSIDE, SCALAR, helper.make_node("Mul", ["b", "s"], ["y"])), {}),
        (model(CONV, SCALAR, helper.make_node("Mul", ["a", "s"], ["y"]), shape=("N", 32, "H", 4)), {}),
        (model(CONV, SCALAR, helper.make_node("Mul", ["a", "s"], ["y"]), shape=("2*N", 32, 5, 4)), {}),
    ],
)  # fmt: skip
def test_what_is_rewritten(graph: onnx.GraphProto, expected: dict[str, int]) -> None:
    before = len(graph.node)
    assert {name: count for name, count in keep_blocked(graph).items() if count} == expected
    assert (len(graph.node) > before) == bool(expected)


def test_what_is_made_once_is_shared() -> None:
    graph = model(
        CONV,
        SCALAR,
        helper.make_node("Mul", ["a", "s"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    )
    assert keep_blocked(graph)["broadcast_scale"] == 2
    assert collections.Counter(node.op_type for node in graph.node)["Conv"] == 2
