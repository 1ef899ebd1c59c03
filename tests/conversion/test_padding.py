"""Zeros around max pooling: ONNX Runtime would make them minus infinity, where the pooled values are negative."""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import surgeon
from surgeon.conversion.writers.padding import keep_zero_padding


def network() -> nn.Sequential:
    """As in BiT: no activation between the padding and the pool, and most values below zero."""
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.bias, -1.0)
    return nn.Sequential(conv, nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()).eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("pool", ["soft", "hard"])
def test_zeros_stay_zeros(tmp_path: Path, pool: str, precision: str) -> None:
    recipe = surgeon.Recipe(pool=pool, precision=precision)
    surgeon.export(network(), tmp_path / "bundle", recipe, formats=("onnx",), input_shape=(3, 12, 12))  # verifies


def answer(model: onnx.ModelProto) -> numpy.ndarray:
    values = -numpy.ones((1, 1, 4, 4), numpy.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0][0, 0]


def test_onnx_runtime_still_needs_to_be_told() -> None:
    """When this fails, `surgeon.conversion.writers.padding` can go."""
    nodes = [
        helper.make_node("Pad", ["x", "widths", "zero"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    ports[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4]))
    given = {"widths": numpy.array([0, 0, 1, 1, 0, 0, 1, 1]), "zero": numpy.zeros((), numpy.float32)}
    stored = [numpy_helper.from_array(value, name) for name, value in given.items()]
    graph = helper.make_graph(nodes, "padded", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    numpy.testing.assert_array_equal(answer(model), -numpy.ones((3, 3)))  # and not zero at the border
    keep_zero_padding(model.graph)
    numpy.testing.assert_allclose(answer(model), [[0, 0, 0], [0, -1, 0], [0, 0, 0]], atol=1e-30)
