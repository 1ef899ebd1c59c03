"""Every node of the artifacts has a CUDA kernel: asked of ONNX Runtime's CUDA provider, which needs no GPU for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import cuda_stand_in

DIGITS = Path("exported/digits")
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = cuda_stand_in.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cuda")
    cuda_stand_in.build(folder)
    return folder


@pytest.mark.parametrize("name", ["pullback.onnx", "ascent_step.onnx", "ascent.onnx"])
def test_nothing_leaves_the_gpu_but_arithmetic_on_sizes(libraries: Path, name: str) -> None:
    where, off = cuda_stand_in.assignment(libraries, DIGITS / name)
    assert off == []
    assert where[CUDA, "Conv"] and where[CUDA, "Sigmoid"]
    assert {operator for provider, operator in where if provider == CPU} <= {"Concat"}


def test_what_leaves_it_is_named(libraries: Path, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="determinant"), helper.make_node("Mul", ["y", "two"], ["z"])],
        "square",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.full((), 2, np.float32), "two")],
    )
    path = tmp_path / "square.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    where, off = cuda_stand_in.assignment(libraries, path)
    assert off == ["Det (determinant)"]
    assert where[CPU, "Det"] == 1 and where[CUDA, "Mul"] == 1
