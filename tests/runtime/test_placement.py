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


ARTIFACTS = ["pullback.onnx", "ascent_step.onnx", "ascent.onnx"]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_nothing_leaves_the_gpu_but_arithmetic_on_sizes(libraries: Path, name: str) -> None:
    where, off = cuda_stand_in.assignment(libraries, DIGITS / name)
    assert off == []
    assert where[CUDA, "Conv"] and where[CUDA, "Sigmoid"]
    assert {operator for provider, operator in where if provider == CPU} <= {"Concat", "Reshape", "Squeeze"}  # of sizes


@pytest.mark.parametrize("name", ARTIFACTS)
def test_nor_does_it_with_channels_last(libraries: Path, name: str) -> None:
    where, off = cuda_stand_in.assignment(libraries, DIGITS / name, prefer_nhwc="1")
    assert off == []
    assert where[CUDA, "Conv"] and where[CUDA, "Transpose"] > 2  # into that layout and out of it
    assert {provider for provider, _ in where} == {CUDA}


@pytest.mark.parametrize("name", ARTIFACTS[:2])
def test_what_has_no_loop_can_be_captured(libraries: Path, name: str) -> None:
    _, off = cuda_stand_in.assignment(libraries, DIGITS / name, enable_cuda_graph="1")
    assert off == []


@pytest.mark.parametrize("name", ARTIFACTS[:2])
def test_what_reads_a_scalar_reads_it_on_the_gpu(name: str) -> None:
    """A value that a kernel reads on the CPU is fixed in a captured graph; those of these operators read none there."""
    graph = onnx.load(DIGITS / name, load_external_data=False).graph
    scalars = {value.name for value in graph.input if not value.type.tensor_type.shape.dim}
    assert scalars
    assert {node.op_type for node in graph.node if scalars & set(node.input)} <= {"Reciprocal", "Mul", "Div"}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ascent.onnx", {"enable_cuda_graph": "1"}, "ascent.onnx cannot be captured in a CUDA graph (This session"),
        ("pullback.onnx", {"bogus": "1"}, "does not take the options use_tf32=0, bogus=1 (Unknown provider option:"),
        ("pullback.onnx", {"use_tf32": "maybe"}, 'use_tf32=maybe (Failed to parse provider option "use_tf32")'),
    ],
)
def test_what_the_provider_refuses_is_one_line(libraries: Path, name: str, options: dict[str, str], said: str) -> None:
    told = cuda_stand_in.refusal(libraries, DIGITS / name, **options)
    assert said in told
    assert len(told.splitlines()) == 1


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
