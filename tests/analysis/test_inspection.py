from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from surgeon.analysis.inspect.inspection import inspect, operators
from surgeon.errors import SurgeonError
from tests.tiny_bundle import LABELS, write_tiny


@pytest.fixture
def tiny(tmp_path):
    return write_tiny(tmp_path / "tiny")


def test_a_bundle_is_described(tiny):
    found = inspect(tiny)
    assert found.manifest is not None and found.facts["recipe"]["gate"] == "soft"
    assert found.bytes == sum(path.stat().st_size for path in tiny.iterdir() if path.name != "manifest.json")
    files = {file.name: file for file in found.files}
    ascent = files["ascent.onnx"]
    assert [port.name for port in ascent.inputs] == [
        "input",
        "cotangent",
        "temperature",
        "step_size",
        "radius",
        "steps",
    ]
    assert [port.default for port in ascent.inputs] == [None, None, pytest.approx(0.3), 2.0, 4.0, 5]
    assert [port.dtype for port in ascent.inputs][-2:] == ["float32", "int64"]
    assert ascent.inputs[0].shape == ("N", 3, 8, 8) and ascent.inputs[0].meaning == "pixels in [-1, 1]"
    assert ascent.opset == 18 and files["ascent.onnx.bin"].format == ""
    assert found.pictured is files["pullback.onnx"]


def test_operators_are_counted_by_role_and_in_loop_bodies(tiny):
    files = {file.name: {one.operator: one.counts for one in operators(file)} for file in inspect(tiny).files[::2]}
    forward = {name: counts["forward"] for name, counts in files["pullback.onnx"].items() if "forward" in counts}
    assert forward == {"MatMul": 2, "Flatten": 1, "Relu": 1}
    assert sum(counts.get("backward", 0) for counts in files["pullback.onnx"].values()) == 7
    assert files["ascent.onnx"]["Sigmoid"] == {"backward": 1}  # inside the loop
    assert files["ascent.onnx"]["Loop"] == {"unmarked": 1}


def test_a_pattern_that_fits_nothing_is_named(tiny):
    assert [pair.forward[0].operator for pair in inspect(tiny).pairs() if pair.forward][-1] == "MatMul"
    with pytest.raises(SurgeonError, match="no module or node is called 'stem'"):
        inspect(tiny).pairs("stem")


@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 8), (192,)])
def test_a_shape_that_the_input_cannot_have_is_refused(tiny, shape):
    with pytest.raises(SurgeonError, match=r"one sample of input is \[3, 8, 8\], not"):
        inspect(tiny, shape)
    assert inspect(tiny, (3, 8, 8)).bytes == inspect(tiny).bytes


def test_the_manifest_file_stands_for_its_bundle(tiny):
    assert inspect(tiny / "manifest.json") == inspect(tiny)


def test_a_lone_file_tells_its_facts_without_weights(tiny):
    (tiny / "pullback.onnx.bin").unlink()
    found = inspect(tiny / "pullback.onnx")
    assert found.manifest is not None and found.manifest.labels == LABELS and not found.manifest.files
    with pytest.raises(SurgeonError, match=r"pullback\.onnx\.bin is missing"):
        inspect(tiny)


def test_a_foreign_file_is_described_too(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    onnx.save(model, str(tmp_path / "relu.onnx"))
    found = inspect(tmp_path / "relu.onnx")
    assert found.manifest is None and found.facts == {}
    assert found.files[0].inputs[0].shape == ("batch", "?")
    assert [one.counts for one in operators(found.files[0])] == [{"unmarked": 1}]
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["s"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], [sequence])), str(tmp_path / "list.onnx"))
    assert inspect(tmp_path / "list.onnx").files[0].outputs[0].dtype == "?"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("resnet50", None, "no bundle or file resnet50"),
        ("model.pt", b"1", "neither a bundle's folder nor an .onnx file"),
        ("empty.onnx", b"", "not an ONNX file"),
        ("text.onnx", b"hello, this is no protobuf", "not an ONNX file"),
    ],
)
def test_what_cannot_be_described_is_named(tmp_path, monkeypatch, name, content, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SurgeonError) as caught:
        inspect(name)
    assert words in str(caught.value) and name in caught.value.message
