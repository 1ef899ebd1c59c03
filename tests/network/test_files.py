"""Files as sources: what is read of them, what is refused, and that a bundle finds its file again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

import surgeon
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Artifact, Defaults, Manifest, Port, Recipe
from surgeon.cli import group
from surgeon.conversion.capture.capture import capture
from surgeon.errors import ConversionError, SurgeonError
from surgeon.network.importer import agreement
from surgeon.network.sources import IN_FILE, resolve, resolve_again
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error
from tests import networks
from tests.onnx_nodes import i, model, saved, w

CONV = helper.make_node("Conv", ["x", "layer1.0.weight"], ["c"], name="/layer1/layer1.0/Conv")
RELU = helper.make_node("Relu", ["c"], ["r"], name="relu")
HEAD = (
    helper.make_node("GlobalAveragePool", ["r"], ["g"]),
    helper.make_node("Reshape", ["g", "flat"], ["out"], name="flatten"),
)
WEIGHTS = {"layer1.0.weight": w(4, 3, 3, 3), "flat": i(1, 4)}


def net(*nodes: onnx.NodeProto, shape: tuple[int | str, ...] = (3, 8, 8), **options: Any) -> onnx.ModelProto:
    """Convolution, ReLU, mean: a network with a fixed batch of 1, unless told otherwise."""
    constants = [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    return model(list(nodes or (CONV, RELU, *HEAD)), constants, shape, **{"batch": 1, **options})


def manifest_of(source: Any) -> Manifest:
    port = Port("input", "float32", ("N", *source.input_shape), "")
    artifacts = {"pullback.onnx": Artifact("onnx", (port,), ())}
    return Manifest(source.model, Recipe(), Defaults(), source.image, source.labels, (), artifacts=artifacts)


def test_what_a_file_says(tmp_path: Path) -> None:
    path = saved(net(), tmp_path, "my.net")
    source = resolve(str(path))
    assert source.input_shape == (3, 8, 8)
    assert source.image is not None and source.image.mean is None
    about = source.model
    assert (about.name, about.source, about.weights, about.licence) == ("my.net", str(path), IN_FILE, "unknown")
    assert (about.input, about.output, about.parameters) == ("x", "out", 4 * 3 * 9)
    assert torch.equal(source.module.layer1_0_weight, torch.from_numpy(WEIGHTS["layer1.0.weight"]))
    assert source.module(torch.zeros(5, 3, 8, 8)).shape == (5, 4)  # the batch of 1 is freed
    normalised = resolve(str(path), preprocess="imagenet")
    assert normalised.image is not None and normalised.image.mean == (0.485, 0.456, 0.406)
    again = resolve_again(Manifest.from_json(manifest_of(source).to_json()))
    assert again.model == source.model


def test_weights_beside_the_file_and_sizes_that_it_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    made = net(shape=(3, "h", "w"))
    onnx.save(made, path, save_as_external_data=True, location="net.bin", size_threshold=100)
    with pytest.raises(SurgeonError, match=r"takes \[1, 3, h, w\] as x, which leaves sizes open. Give --input-shape"):
        resolve(str(path))
    assert resolve(str(path), input_shape=(3, 9, 7)).input_shape == (3, 9, 7)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(SurgeonError, match=r"cannot be read as an ONNX file.*weights file beside it"):
        resolve(str(path), input_shape=(3, 9, 7))


def channels_last(folder: Path) -> Path:
    transposed = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
    conv = helper.make_node("Conv", ["t", "layer1.0.weight"], ["c"])
    return saved(net(transposed, conv, RELU, *HEAD, shape=(8, 10, 3)), folder)


def test_channels_last_are_no_picture_unless_a_preprocessing_says_so(tmp_path: Path) -> None:
    path = str(channels_last(tmp_path))
    bare, turned, normalised = (resolve(path, preprocess=given) for given in (None, "none", "imagenet"))
    assert (bare.input_shape, bare.image) == ((8, 10, 3), None)
    for source in (turned, normalised):
        assert source.input_shape == (3, 8, 10) and source.image is not None
        assert (source.image.channels, source.image.height, source.image.width) == (3, 8, 10)
    x = torch.rand(2, 3, 8, 10)
    assert torch.equal(turned.module(x), bare.module(x.movedim(1, -1)))
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (normalised.image.mean, normalised.image.std))
    expected = bare.module((((x + 1) / 2 - mean) / std).movedim(1, -1))
    assert torch.allclose(normalised.module(x), expected, rtol=1e-6)


def test_a_bundle_of_channels_last_takes_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    channels_last(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save("photo.png")
    few = ["--formats", "onnx"]
    for options in ([], ["--preprocess", "imagenet"]):
        command = ["export", "net.onnx", "-o", "bundle", "--no-verify", *few, *options]
        assert CliRunner().invoke(group, command).exit_code == 0
        assert CliRunner().invoke(group, ["verify", "bundle"], catch_exceptions=False).exit_code == 0
        ran = CliRunner().invoke(group, ["run", "bundle", "photo.png", "--target", "1", "-o", "out"])
        if options:
            assert ran.exit_code == 0 and ports_of("bundle") == ["N", 3, 8, 10]
        else:
            assert isinstance(ran.exception, SurgeonError)
            assert "is not a picture, but [N, 8, 10, 3]. Export it with --preprocess none" in str(ran.exception)


def ports_of(bundle: str) -> list[int | str]:
    return list(Bundle.open(bundle).manifest.artifacts["pullback.onnx"].inputs[0].shape)


def test_one_of_several_outputs(tmp_path: Path) -> None:
    path = saved(net(outputs=("out", "r:0")), tmp_path)
    made = onnx.load(path)
    made.graph.node[1].output[0] = made.graph.node[2].input[0] = "r:0"
    onnx.save(made, path)
    with pytest.raises(ConversionError, match=rf"has 2 outputs \(out, r:0\). Name one: {path}:out"):
        resolve(str(path))
    source = resolve(f"{path}:r:0")
    assert (source.model.name, source.model.output) == ("net", "r:0")
    assert source.module(torch.zeros(2, 3, 8, 8)).shape == (2, 4, 6, 6)
    with pytest.raises(SurgeonError, match=r"has no output 'lost'. Its outputs: out, r:0"):
        resolve(f"{path}:lost")


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (net(opset=8), SurgeonError, "of opset 8, and surgeon reads 9 and later"),
        (
            net(CONV, helper.make_node("Det", ["c"], ["d"]), helper.make_node("Fuse", ["d"], ["out"], domain="mine")),
            ConversionError,
            r"cannot import: Det \(1\), mine::Fuse \(1\)",
        ),
        (
            net(CONV, helper.make_node("Relu", ["c"], ["out"], colour=3)),
            ConversionError,
            "Relu out: the attribute colour",
        ),
        (net(batch=1, shape=()), ConversionError, "without a batch"),
        (
            net(helper.make_node("Constant", [], ["k"]), helper.make_node("Add", ["x", "k"], ["out"])),
            ConversionError,
            "the constant k of net.onnx has no value",
        ),
        (net(HEAD[0], CONV, HEAD[1]), SurgeonError, "its input r is not computed"),
        (
            net(CONV, RELU, helper.make_node("ReduceMean", ["r"], ["out"], axes=[0, 2, 3], keepdims=0)),
            ConversionError,
            "its batch cannot be freed",
        ),
        (
            net(CONV, RELU, HEAD[0], helper.make_node("Flatten", ["g"], ["out"], axis=0)),
            ConversionError,
            "its batch cannot be freed",
        ),
        (
            net(
                helper.make_node("Shape", ["x"], ["s"]),
                helper.make_node("Reshape", ["x", "s"], ["y"]),
                helper.make_node("MaxPool", ["y"], ["out", "where"], kernel_shape=[2, 2]),
                outputs=("where",),
            ),
            ConversionError,
            "the output where is no tensor",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, made: onnx.ModelProto, error: type[SurgeonError], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(str(saved(made, tmp_path)))


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    made = net()
    made.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [3]))
    with pytest.raises(ConversionError, match=r"the input mask of net.onnx has another batch"):
        resolve(str(saved(made, tmp_path)))
    listed = net()
    listed.graph.input.append(helper.make_tensor_value_info("flat", TensorProto.INT64, [2]))  # an initializer
    assert resolve(str(saved(listed, tmp_path))).input_shape == (3, 8, 8)
    whole = net()
    whole.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ConversionError, match=r"no input of net.onnx holds float32.* it takes x \(int64\)"):
        resolve(str(saved(whole, tmp_path)))
    with pytest.raises(SurgeonError, match=r"takes \[1, 3, 8, 8\], not an input of 3,9,9. Leave --input-shape out"):
        resolve(str(saved(net(), tmp_path)), input_shape=(3, 9, 9))


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.pt2"):
        (tmp_path / name).write_bytes(b"\x08nonsense")
        with pytest.raises(SurgeonError, match=rf"{name} cannot be read as|holds no network"):
            resolve(str(tmp_path / name))
        with pytest.raises(SurgeonError, match="there is no file"):
            resolve(str(tmp_path / f"lost-{name}"))
        with pytest.raises(SurgeonError, match="has its weights, and takes no others"):
            resolve(str(tmp_path / name), weights="random")


OFFSET = numpy_helper.from_array(np.array(20000, np.float32), "offset")


@pytest.mark.parametrize("mixing", ["ReduceMean", "ReduceMax"])
@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_an_offset_hides_no_mixing_of_samples(tmp_path: Path, mixing: str, batch: int | str) -> None:
    over_all = helper.make_node(mixing, ["r"], ["m"], keepdims=0)
    scaled = helper.make_node("Mul", ["r", "m"], ["s"])
    made = net(CONV, RELU, over_all, scaled, helper.make_node("Add", ["s", "offset"], ["out"]), batch=batch)
    made.graph.initializer.append(OFFSET)
    with pytest.raises(ConversionError, match=r"net.onnx mixes the samples of a batch: .* Export it without a sum"):
        resolve(str(saved(made, tmp_path)))


def test_what_is_checked_in_float64_is_no_reason_to_refuse(tmp_path: Path) -> None:
    squeezed = (CONV, RELU, HEAD[0], helper.make_node("Squeeze", ["g"], ["out"]))
    assert resolve(str(saved(net(*squeezed, batch="N"), tmp_path))).module(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    filled = helper.make_node("ConstantOfShape", ["s"], ["ones"], value=numpy_helper.from_array(np.float32([1])))
    product = helper.make_node("MatMul", ["ones", "weight"], ["p"])
    nodes = (helper.make_node("Shape", ["x"], ["s"]), filled, product, helper.make_node("Add", ["p", "x"], ["out"]))
    made = net(*nodes, batch="N")
    made.graph.initializer.append(numpy_helper.from_array(w(8, 8), "weight"))
    assert resolve(str(saved(made, tmp_path))).module(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_an_offset_is_no_reason_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = net(CONV, RELU, helper.make_node("Add", ["r", "offset"], ["out"]))
    made.graph.initializer.append(OFFSET)
    path = saved(made, tmp_path)
    module = resolve(str(path)).module
    assert torch.equal(module.layer1_0_weight, torch.from_numpy(WEIGHTS["layer1.0.weight"]))  # once in float64
    right = agreement._runtime_output
    monkeypatch.setattr(agreement, "_runtime_output", lambda *given: (right(*given) - 20000) * 1.1 + 20000)
    with pytest.raises(ConversionError, match="imported wrongly"):
        resolve(str(path))


def test_what_the_runtime_does_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = agreement._runtime_output

    def wrong(path: Path, *given: Any) -> Any:
        return right(path, *given) * 1.01

    monkeypatch.setattr(agreement, "_runtime_output", wrong)
    with pytest.raises(ConversionError, match=r"imported wrongly: its output is 3.1e-02 from ONNX Runtime's"):
        resolve(str(saved(net(), tmp_path)))


def invoked(*command: str) -> tuple[int, str, str]:
    """Exit code, standard output, and the message of what was raised."""
    result = CliRunner().invoke(group, command)
    code = getattr(result.exception, "exit_code", result.exit_code)
    return code, result.stdout, str(result.exception)


def test_check_lists_what_cannot_be_imported(tmp_path: Path) -> None:
    kinds = ("Det", "LSTM", "Det")
    nodes = [helper.make_node(kind, [f"v{i}"], [f"v{i + 1}"], name=f"/{kind} {i}") for i, kind in enumerate(kinds)]
    nodes[0].input[0], nodes[-1].output[0] = "r", "out"
    path = str(saved(net(CONV, RELU, *nodes), tmp_path))
    code, out, message = invoked("check", path, "--json")
    told = json.loads(out)
    assert (code, told["convertible"], told["totals"]["unsupported"]) == (4, False, 3)
    assert message.startswith(f"{told['reason']}. ") and "cannot import: Det (2), LSTM (1: recurrent)" in message
    assert [(one["operator"], one["count"]) for one in told["operators"]] == [("Det", 2), ("LSTM", 1)]
    assert told["operators"][1]["places"] == [
        {"node": "/LSTM 1", "module": "/LSTM 1", "line": "", "reason": "/LSTM 1: recurrent"}
    ]
    table = invoked("check", path)[1]
    assert "/Det 0: surgeon cannot import it; also in /Det 2" in table and "3 operators: 3 unsupported" in table
    mixing = net(CONV, helper.make_node("ReduceMean", ["c"], ["m"]), helper.make_node("Mul", ["c", "m"], ["out"]))
    code, out, _ = invoked("check", str(saved(mixing, tmp_path)), "--json")
    assert code == 4 and "mixes the samples" in json.loads(out)["reason"]


def test_a_failed_export_reports_what_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(net(), tmp_path)
    code, out, message = invoked("export", "net.onnx", "--formats", "onnx", "--tolerance", "1e-12", "--json")
    told = json.loads(out)
    assert (code, told["bundle"], told["passed"]) == (3, None, False)
    assert f" of {len(told['verification'])} comparisons" in message and not (tmp_path / "exported").exists()


def test_layers_of_a_file_go_by_its_own_names(tmp_path: Path) -> None:
    path = str(saved(net(), tmp_path))
    listed = json.loads(invoked("inspect", path, "--as-model", "--show", "layers", "--json")[1])["layers"]
    assert [(layer["name"], layer["kind"], layer["shape"]) for layer in listed[:2]] == [
        ("layer1_layer1_0_Conv", "Conv", ["N", 4, 6, 6]),
        ("relu", "Relu", ["N", 4, 6, 6]),
    ]
    source = resolve(path)
    x = torch.randn(2, 3, 8, 8)
    for name in ("layer1_layer1_0_Conv", "/layer1/layer1.0/Conv", "c"):
        graph = capture(source.module, x, at=(name,)).graph
        expected = torch.nn.functional.conv2d(x, source.module.layer1_0_weight)
        assert torch.allclose(graph(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("check", "net.ONNX:"), "net.ONNX: names no output. Write net.ONNX:OUTPUT, or net.ONNX alone"),
        (("check", "net.h5"), "net.h5 is no network: surgeon reads files that end in .onnx or .pt2. Give one of those"),
        (("check", "nets.py:make"), "nets.py:make is no network: surgeon reads files"),
        (("check", "my/nets"), "my/nets is no network: surgeon reads files"),
        (("check", "lost.onnx"), "there is no file lost.onnx. Give the path of an .onnx or .pt2 file"),
        (("inspect", "lost.onnx"), "there is no bundle or file lost.onnx. Give the path of a bundle or an .onnx file"),
    ],
)
def test_what_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(net(), tmp_path).rename("net.ONNX")
    code, _, told = invoked(*command)
    assert code == 1 and told.startswith(message)
    assert resolve("net.ONNX").model.name == "net"


def test_a_bundle_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(net(), tmp_path)
    command = ["export", "net.onnx", "-o", "bundle", "--formats", "onnx", "--json"]
    told = json.loads(CliRunner().invoke(group, command, catch_exceptions=False).stdout)
    assert (told["model"], told["weights"], told["gates"]) == ("net", IN_FILE, 1)
    assert told["passed"]
    session = surgeon.load(tmp_path / "bundle")
    assert session.manifest.gates[0].module == "relu"
    assert (session.manifest.model.input, session.manifest.model.output) == ("x", "out")
    x, v = np.random.default_rng(3).normal(size=(2, 5, 3, 8, 8)).astype(np.float32)[0], np.ones((5, 4), np.float32)
    expected = reference_pullback(
        resolve(str(path)).module, torch.from_numpy(x), torch.from_numpy(v), recipe=Recipe(), temperature=0.7
    )
    assert relative_error(torch.from_numpy(session.pullback(x, v, 0.7).pullback), expected[1]) < 1e-5
    assert CliRunner().invoke(group, ["verify", "bundle"], catch_exceptions=False).exit_code == 0
    with pytest.raises(SurgeonError, match="a file does not say which of its ReLUs were modules"):
        surgeon.export("net.onnx", tmp_path / "other", Recipe(gate_scope="modules"))
    path.rename(tmp_path / "moved.onnx")
    with pytest.raises(SurgeonError, match=r"net was exported from net.onnx, which is not here. Give --source FILE"):
        resolve_again(session.manifest)
    assert resolve_again(session.manifest, source="moved.onnx").input_shape == (3, 8, 8)


def several(*names: str, kind: int = TensorProto.FLOAT, first: str = "x") -> onnx.ModelProto:
    """The network with inputs [1, 4] besides, all of which are added at the end."""
    made = net(CONV, RELU, HEAD[0], helper.make_node("Reshape", ["g", "flat"], ["sum 0"]))
    for place, name in enumerate(names):
        made.graph.input.append(helper.make_tensor_value_info(name, kind, [1, 4]))
        made.graph.node.append(helper.make_node("Cast", [name], [f"cast {place}"], to=TensorProto.FLOAT))
        made.graph.node.append(helper.make_node("Add", [f"sum {place}", f"cast {place}"], [f"sum {place + 1}"]))
    made.graph.node[-1].output[0] = "out"
    made.graph.input[0].name = made.graph.node[0].input[0] = first
    return made


def test_what_is_said_of_other_inputs_must_fit_the_file(tmp_path: Path) -> None:
    path = str(saved(several("cond", "a/b"), tmp_path))
    for extra_inputs in ({}, {"cond": (4,)}, {"cond": ((4,), "float32"), "a/b": (4,)}, {"a_b": (4,)}):
        assert [port.name for port in resolve(path, extra_inputs=extra_inputs).extra_inputs] == ["cond", "a_b"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"nope": (4,)}, r"net.onnx has no input 'nope' beside .*\. It takes cond, a_b there"),
        ({"x": (3, 8, 8)}, r"net.onnx has no input 'x' beside"),
        ({"cond": ((4,), "int64")}, "the input cond of net.onnx is float32, not int64. Leave the dtype out"),
        ({"cond": (4, 4)}, r"takes \[1, 4\], not an input of 4,4. Leave --extra-input out"),
    ]
    for extra_inputs, message in wrong:
        with pytest.raises(SurgeonError, match=message):
            resolve(path, extra_inputs=extra_inputs)
    with pytest.raises(SurgeonError, match="Leave --extra-input out: it takes nothing else"):
        resolve(str(saved(net(), tmp_path)), extra_inputs={"nope": ()})
    with pytest.raises(ConversionError, match=r"is int8. Have it take float32 or int64 or int32 or bool, and cast"):
        resolve(str(saved(several("cond", kind=TensorProto.INT8), tmp_path)))


def test_a_dtype_that_is_not_said_is_the_files(tmp_path: Path) -> None:
    path = saved(several("step", kind=TensorProto.INT64), tmp_path)
    for extra_input, code in (("step=4", 0), ("step=4:int64", 0), ("step=4:float32", 1)):
        assert CliRunner().invoke(group, ["check", str(path), "--extra-input", extra_input]).exit_code == code


NAMES = ("a/b", "a:b", "input", "input_", "0", "class", "größe", "temperature", "temperature_", "self", "torch")


def test_other_inputs_of_any_name(tmp_path: Path) -> None:
    path = saved(several(*NAMES, "input__", first="pixels"), tmp_path)
    surgeon.export(str(path), tmp_path / "bundle")
    session = surgeon.load(tmp_path / "bundle")
    names = [port.name for port in session.extra_inputs]
    assert names[:6] == ["a_b", "a_b_", "input_", "input__", "_0", "class_"]
    assert len({*names}) == len(NAMES) + 1 and all(name.isidentifier() and name.isascii() for name in names)
    assert session.manifest.extra_inputs[4].meaning.startswith("the network's own input 0")
    resolve_again(session.manifest)


def test_weights_and_nodes_of_any_name(tmp_path: Path) -> None:
    names, nodes, last = (("权重", "激活"), ("class", "class"), ("import", "größe")), [], "x"
    for place, (weight, name) in enumerate(names):
        nodes += [helper.make_node("Conv", [last, weight], [f"c{place}"], pads=[1] * 4)]
        nodes += [helper.make_node("Relu", [f"c{place}"], [f"r{place}"], name=name)]
        last = f"r{place}"
    weights = [numpy_helper.from_array(w(3, 3, 3, 3, shift=0.1 * place), name) for place, (name, _) in enumerate(names)]
    made = model([*nodes, helper.make_node("GlobalAveragePool", [last], ["out"])], weights, (3, 8, 8))
    bundle = surgeon.export(str(saved(made, tmp_path)), tmp_path / "bundle")
    assert bundle.manifest.verification and len(bundle.manifest.gates) == 3
    assert all(gate.module.isascii() for gate in bundle.manifest.gates)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x


def save_program(module: nn.Module, path: Path, shape: tuple[int, ...], free: bool = True) -> str:
    example = torch.randn(2, *shape)
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if free else None
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), path)
    return str(path)


def test_programs_that_torch_export_saved(tmp_path: Path) -> None:
    network = networks.build(networks.Stem).float()
    source = resolve(save_program(network, tmp_path / "stem.pt2", networks.Stem.input_shape))
    assert (source.model.name, source.model.weights, source.model.input) == ("stem", IN_FILE, "x")
    assert source.input_shape == networks.Stem.input_shape
    x, v = networks.example(networks.Stem), torch.randn(3, 5, dtype=torch.float64)
    output, expected = reference_pullback(network.double(), x, v, recipe=Recipe(), temperature=0.3)
    module = source.module.double()
    found = reference_pullback(module, x, v, recipe=Recipe(), temperature=0.3)
    assert relative_error(found[0], output) < 1e-6 and relative_error(found[1], expected) < 1e-6
    graph = surgeon.rewrite(module, x)
    assert relative_error(graph(x, v, torch.tensor(0.3, dtype=torch.float64))[1], found[1]) < 1e-10


def test_files_that_are_no_programs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pt2"
    whole = Path(save_program(nn.Linear(4, 2), tmp_path / "whole.pt2", (4,))).read_bytes()
    torch.save(nn.Linear(4, 2).state_dict(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(4, 2)), tmp_path / "script.pt2")
    script = (tmp_path / "script.pt2").read_bytes()
    for data, reason in (
        (path.read_bytes(), "a file of torch.save, such as a state dict"),
        (script, "a TorchScript file"),
        (whole[: len(whole) // 2], "no zip archive, or not the whole of one"),
        (b"", "no zip archive, or not the whole of one"),
    ):
        path.write_bytes(data)
        with pytest.raises(SurgeonError, match=rf"net.pt2 cannot be read as a .* \({reason}\). Save it with"):
            resolve(str(path))
    assert capfd.readouterr() == ("", "")


def test_programs_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"exported for inputs of \[2, 4\], with a fixed batch. Export it with"):
        resolve(save_program(nn.Linear(4, 2), tmp_path / "fixed.pt2", (4,), free=False))
    two = save_program(Two(), tmp_path / "two.pt2", (4,))
    with pytest.raises(ConversionError, match=r"two.pt2 has 2 outputs \(relu, x\). Name one: "):
        resolve(two)
    assert torch.equal(resolve(f"{two}:relu").module(torch.tensor([[-1.0, 1, 2, -3]])), torch.tensor([[0.0, 1, 2, 0]]))
    training = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
    with pytest.raises(ConversionError, match="exported in training mode"):
        resolve(save_program(training, tmp_path / "training.pt2", (4,)))
    with pytest.raises(SurgeonError, match=r"two.pt2 has no input 'nope' beside .* Leave --extra-input out"):
        resolve(f"{two}:relu", extra_inputs={"nope": (4,)})
    with pytest.raises(SurgeonError, match=r"not \[5\]. Leave --input-shape out"):
        resolve(f"{two}:relu", input_shape=(5,))
