"""What is done to artifacts for the CPU: the same values as before at every geometry, and where it should be done."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

import surgeon
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Recipe
from surgeon.runtime import tuning
from surgeon.runtime.graphs import graphs
from surgeon.runtime.providers import CPU, open_session
from surgeon.runtime.tuning.graph_rewriter import GraphRewriter
from tests import networks

RANDOM = np.random.default_rng(0)


def model(
    nodes: list[NodeProto], g: tuple[int, ...], out: tuple[int, ...], role: str = "backward", **constants: Any
) -> ModelProto:
    """A graph from `input` to `output`, images of these sizes for one sample; every node has the `role`."""
    for node in nodes:
        node.metadata_props.add(key="surgeon.role", value=role)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *g])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", *out])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(found: ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(found, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def same(found: ModelProto, size: tuple[int, ...], applied: dict[str, int] | None, batch: int = 2) -> None:
    """Tune `found`: these passes apply (None: any or none), and its values are what they were."""
    x = RANDOM.standard_normal((batch, *size)).astype(np.float32)
    expected = run(found, x)
    counts = tuning.tune(found)
    assert applied is None or counts == applied
    values = run(found, x)
    assert values.shape == expected.shape
    assert np.linalg.norm(values - expected) <= 2e-6 * np.linalg.norm(expected)


def kernels(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def convolution(out: int, channels: int, k: int, bias: bool = False, **attributes: Any) -> tuple[NodeProto, Any]:
    constants = {"w": kernels(out, channels, k, k)} | ({"b": kernels(out)} if bias else {})
    around = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "kernel_shape": [k, k], **attributes}
    return helper.make_node("Conv", ["input", *constants], ["output"], name="conv", **around), constants


FEWER = "winograd_3x3"


@pytest.mark.parametrize("size", [(32, 24), (33, 24), (32, 25), (31, 23)])
@pytest.mark.parametrize(("channels", "out"), [(128, 256), (256, 128), (400, 48)])
def test_convolutions_with_fewer_products(channels: int, out: int, size: tuple[int, int]) -> None:
    node, constants = convolution(out, channels, 3, pads=[1] * 4)
    same(model([node], (channels, *size), (out, *size), **constants), (channels, *size), {FEWER: 1})


@pytest.mark.parametrize(
    "changed",
    [{"pads": [0] * 4}, {"strides": [2, 2]}, {"dilations": [2, 2], "pads": [2] * 4}, {"group": 4}],
)
def test_other_convolutions_stay(changed: dict[str, Any]) -> None:
    around = {"pads": [1] * 4, **changed}
    node, constants = convolution(128, 128 // around.get("group", 1), 3, **around)
    size = 16 if "strides" in changed else 30 if changed.get("pads") == [0] * 4 else 32
    same(model([node], (128, 32, 32), (128, size, size), **constants), (128, 32, 32), {})


def test_small_or_narrow_convolutions_stay() -> None:
    node, constants = convolution(256, 256, 3, pads=[1] * 4)
    same(model([node], (256, 7, 7), (256, 7, 7), **constants), (256, 7, 7), {})
    node, constants = convolution(32, 32, 3, pads=[1] * 4)
    same(model([node], (32, 32, 32), (32, 32, 32), **constants), (32, 32, 32), {})


@pytest.mark.parametrize("bias", [True, False])
def test_forward_convolutions_have_fewer_products_where_gates_are_soft(bias: bool) -> None:
    node, constants = convolution(256, 256, 3, bias, pads=[1] * 4)
    size = (256, 23, 24)
    hard = model([node], size, size, role="forward", **constants)
    soft = ModelProto()
    soft.CopyFrom(hard)
    same(hard, size, {})
    helper.set_model_props(soft, {"surgeon": json.dumps({"gates": [{"rule": "soft"}]})})
    same(soft, size, {FEWER: 1})


def adjoint(
    taken: int, given: int, k: int, padding: int, size: tuple[int, int], extra: int, cut: int, groups: int = 1
) -> tuple[ModelProto, tuple[int, ...]]:
    """The adjoint of a convolution with stride two, and what cuts `cut` rows and columns off each of its sides."""
    out = [2 * (length - 1) + k - 2 * padding + extra for length in size]
    left = [length - 2 * cut for length in out]
    node = helper.make_node(
        "ConvTranspose",
        ["input", "w"],
        ["spread" if cut else "output"],
        name="adjoint",
        kernel_shape=[k, k],
        strides=[2, 2],
        dilations=[1, 1],
        pads=[padding] * 4,
        output_padding=[extra, extra],
        group=groups,
    )
    pad = helper.make_node("Pad", ["spread", "widths"], ["output"], name="cut", mode="constant")
    widths = {"widths": np.array([0, 0, -cut, -cut, 0, 0, -cut, -cut])} if cut else {}
    nodes = [node, pad] if cut else [node]
    found = model(nodes, (taken, *size), (given, *left), w=kernels(taken, given // groups, k, k), **widths)
    if cut:
        found.graph.value_info.append(helper.make_tensor_value_info("spread", TensorProto.FLOAT, ["N", given, *out]))
    return found, (taken, *size)


STRIDED = "subpixel_conv_transpose"
GEOMETRIES = [
    (k, padding, extra, cut)
    for k, padding, extra, cut in itertools.product((2, 3, 4, 5, 7), (0, 1, 2, 3), (0, 1), (0, 1))
    if padding <= k // 2 and padding + cut <= k // 2
]


@pytest.mark.parametrize("groups", [1, 64])
@pytest.mark.parametrize(("k", "padding", "extra", "cut"), GEOMETRIES)
def test_strided_adjoints(k: int, padding: int, extra: int, cut: int, groups: int) -> None:
    """As four convolutions, and depthwise."""
    found, size = adjoint(64, 64, k, padding, (5, 6), extra, cut, groups)
    halves = k % 2 == 1 and padding + cut == k // 2 and extra == 1  # as in networks
    same(found, size, {STRIDED: 1} if halves else None, batch=3)


def test_strided_adjoints_of_one_element() -> None:
    found, size = adjoint(32, 16, 1, 0, (5, 6), 1, 0)
    same(found, size, {STRIDED: 1})
    found, size = adjoint(32, 16, 1, 0, (5, 6), 0, 0)  # of an odd size
    same(found, size, {})


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("k", "out"), [(3, 3), (3, 1), (5, 2)])
def test_convolutions_of_few_outputs(k: int, out: int, padding: int) -> None:
    node, constants = convolution(out, 32, k, pads=[padding] * 4)
    left = [length + 2 * padding - k + 1 for length in (9, 11)]
    same(model([node], (32, 9, 11), (out, *left), **constants), (32, 9, 11), {"im2col_narrow_conv": 1})


class Blocks(nn.Sequential):
    """A normalisation before its ReLU, as in a DenseNet, a pool, a strided convolution and a clamped depthwise one."""

    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.MaxPool2d(2)),
            *(nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 64, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 5, stride=2, padding=2, groups=64), nn.ReLU6(), nn.Flatten(), nn.Linear(64 * 16, 4)),
        )
        self[4].running_mean.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return Blocks().eval()


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    return exported(blocks)


def test_every_pass_applies_to_a_bundle_in_its_loop_too(bundle: Path) -> None:
    for name, times in (("pullback.onnx", 1), ("ascent_step.onnx", 1), ("ascent.onnx", 1)):
        found = onnx.load(bundle / name, load_external_data=False)
        applied = tuning.tune(found, 0.5)
        assert {step.__name__ for step in tuning.PASSES} <= set(applied), name
        assert applied["scale_by_constants"] == 4 * times
        assert "temperature" not in [port.name for port in found.graph.input]


def test_nobody_runs_what_nobody_reads(bundle: Path) -> None:
    """ONNX Runtime does not look: tensors of 1/T would be computed, and kept, at a temperature that is fixed."""
    for name in ("pullback.onnx", "ascent.onnx"):
        found = onnx.load(bundle / name, load_external_data=False)
        before = sum(len(graph.node) for graph in graphs(found.graph))
        tuning.tune(found, 0.5)
        everything = list(graphs(found.graph))
        read = {value.name for graph in everything for value in graph.output}
        read |= {name for graph in everything for node in graph.node for name in node.input}
        assert all(not read.isdisjoint(node.output) for graph in everything for node in graph.node)
        assert before > 50


def test_exponentials_are_written_behind_what_they_are_of(bundle: Path) -> None:
    found = onnx.load(bundle / "pullback.onnx")
    places = {node.op_type: i for i, node in enumerate(found.graph.node)}
    first = next(i for i, node in enumerate(found.graph.node) if GraphRewriter.is_backward(node))
    assert first < places["Exp"]
    assert tuning.tune(found, 0.5)["schedule_exp_early"] == 1
    nodes = list(found.graph.node)
    exponential = next(i for i, node in enumerate(nodes) if node.op_type == "Exp")
    pool = next(i for i, node in enumerate(nodes) if node.op_type == "MaxPool")
    gate = next(i for i, node in enumerate(nodes) if node.op_type == "Sigmoid")
    assert pool < exponential < gate
    onnx.checker.check_model(found)  # in an order that holds


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.3, 2.0])
def test_a_session_computes_what_the_file_does(bundle: Path, temperature: float, batch: int) -> None:
    session = surgeon.load(bundle)
    x = RANDOM.uniform(-1, 1, (batch, 3, 32, 32)).astype(np.float32)
    cotangent = RANDOM.standard_normal((batch, 4)).astype(np.float32)
    feeds = {"input": x, "cotangent": cotangent, "temperature": np.array(temperature, np.float32)}
    for name, found in (
        ("pullback.onnx", session.pullback(x, cotangent, temperature)),
        ("ascent.onnx", session.ascent(x, cotangent, steps=3, temperature=temperature)),
    ):
        steps = {"steps": np.array(3)} if name == "ascent.onnx" else {}
        plain = open_session(bundle / name, CPU, None, tuning=False)
        for value, expected in zip(found, plain.run(None, feeds | steps), strict=True):
            assert np.linalg.norm(value - expected) <= 2e-5 * np.linalg.norm(expected)


def test_a_session_serves_every_temperature(bundle: Path) -> None:
    x = RANDOM.uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    cotangent = np.ones((1, 4), np.float32)
    session = surgeon.load(bundle)
    first = session.pullback(x, cotangent, temperature=0.2).pullback
    other = session.pullback(x, cotangent, temperature=1.5).pullback
    again = session.pullback(x, cotangent, temperature=0.2).pullback
    fresh = surgeon.load(bundle).pullback(x, cotangent, temperature=1.5).pullback
    np.testing.assert_array_equal(first, again)
    assert np.linalg.norm(other - fresh) <= 1e-5 * np.linalg.norm(fresh)
    assert np.linalg.norm(other - first) > 1e-2 * np.linalg.norm(first)
    with pytest.raises(surgeon.SurgeonError, match="temperature is 0"):
        session.pullback(x, cotangent, temperature=0)


def test_files_may_be_written_tuned(exported, bundle: Path) -> None:
    path = exported(blocks, check=True, layout="tuned")
    written = Bundle.open(path)
    assert written.manifest.verification and all(line.error < 1e-4 for line in written.manifest.verification)
    names = {step.__name__ for step in tuning.PASSES} - {"scale_by_constants"}
    assert names | {"broadcast_scale"} <= {name for name, count in written.manifest.passes.items() if count}
    for name in ("pullback.onnx", "ascent_step.onnx", "ascent.onnx"):
        found = onnx.load(path / name, load_external_data=False)
        assert not names & set(tuning.tune(found, 0.3))  # there is nothing left but the temperature
    x = RANDOM.uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    cotangent = RANDOM.standard_normal((2, 4)).astype(np.float32)
    one, other = (surgeon.load(path).pullback(x, cotangent).pullback for path in (path, bundle))
    assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)


class Steep(nn.Sequential):
    """Convolutions wide enough to be rewritten, and gates that are functions, which the scope "modules" leaves hard."""

    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x)).amax((2, 3))


def steep() -> nn.Module:
    torch.manual_seed(0)
    return Steep().eval()


def with_facts(found: ModelProto, **changes: Any) -> ModelProto:
    """`found`, which says this of itself instead."""
    (entry,) = [prop for prop in found.metadata_props if prop.key == "surgeon"]
    entry.value = json.dumps(json.loads(entry.value) | changes)
    return found


def test_the_forward_pass_stays_where_a_gate_jumps(exported) -> None:
    found = onnx.load(exported(steep, gate_scope="modules") / "pullback.onnx", load_external_data=False)
    (entry,) = [prop.value for prop in found.metadata_props if prop.key == "surgeon"]
    rules = [gate["rule"] for gate in json.loads(entry)["gates"]]
    assert "hard" in rules and "soft" in rules
    for given, times in ((rules, 1), (["hard"] * len(rules), 1), (["soft"] * len(rules), 2)):
        changed = with_facts(copy.deepcopy(found), gates=[{"rule": rule} for rule in given])
        assert tuning.tune(changed, 0.3)[FEWER] == times  # one is the backward pass


def test_halves_are_run_as_they_are(exported, tmp_path: Path) -> None:
    path = exported(blocks, precision="fp16") / "pullback.onnx"
    assert tuning.tuned(path, 0.3) is None
    found = onnx.load(path)
    assert "surgeon" in [prop.key for prop in found.metadata_props]
    onnx.save(with_facts(found, gates=[{"rule": "hard"}]), tmp_path / "hard.onnx")
    assert tuning.tuned(tmp_path / "hard.onnx", 0.3) is None
    onnx.save(with_facts(found, recipe={"precision": "fp32"}), tmp_path / "single.onnx")
    assert tuning.tuned(tmp_path / "single.onnx", 0.3) is not None  # it is the precision that keeps it


def test_bundles_of_links(bundle: Path, tmp_path: Path) -> None:
    """As the caches of model hubs have them: each file a link to one of another name elsewhere."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for i, path in enumerate(sorted(bundle.iterdir())):
        (tmp_path / "blobs" / str(i)).write_bytes(path.read_bytes())
        (tmp_path / "snapshot" / path.name).symlink_to(tmp_path / "blobs" / str(i))
    x, cotangent = np.zeros((1, 3, 32, 32), np.float32), np.ones((1, 4), np.float32)
    linked, own = surgeon.load(tmp_path / "snapshot"), surgeon.load(bundle)
    np.testing.assert_array_equal(linked.pullback(x, cotangent).pullback, own.pullback(x, cotangent).pullback)
    np.testing.assert_array_equal(linked.ascent(x, cotangent).perturbed, own.ascent(x, cotangent).perturbed)


class Beside(nn.Module):
    """Pulled back to a signal, with a picture beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.picture = nn.Conv1d(3, 16, 3), nn.Conv2d(3, 16, 3)
        self.both, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gate = torch.relu(self.signal(x)).mean(2)[:, :, None, None]
        return self.last(torch.relu(self.both(torch.relu(self.picture(y)) * gate)).mean((2, 3)))


def test_a_picture_beside_what_is_pulled_back_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written = surgeon.export(
        Beside().eval(), tmp_path / "b", Recipe(), input_shape=(3, 12), extra_inputs={"y": (3, 8, 9)}, formats=["onnx"]
    )
    assert all(line.passed for line in written.manifest.verification)


def test_a_session_of_a_bundle_without_onnx(exported) -> None:
    session = surgeon.load(exported(networks.stem, formats=("torchscript",), gate="hard", pool="hard"))
    image = np.zeros((1, *networks.Stem.input_shape), np.float32)
    with pytest.raises(surgeon.SurgeonError, match=r"pullback\.onnx"):
        session.pullback(image, np.ones((1, 5), np.float32))


def test_files_of_others_and_on_other_processors_are_run_as_they_are(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = onnx.load(bundle / "pullback.onnx")
    assert tuning.tuned(bundle / "pullback.onnx", 0.3) is not None
    del found.metadata_props[:]
    onnx.save(found, tmp_path / "other.onnx")
    assert tuning.tuned(tmp_path / "other.onnx", 0.3) is None
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert tuning.tuned(bundle / "pullback.onnx", 0.3) is None
