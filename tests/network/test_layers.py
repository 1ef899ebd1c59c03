"""Hidden units: the cotangent at a layer, what lies above it pruned, and runs that name a unit of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.analysis.inspect.model_summary import layers
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.rewriting import rewrite
from surgeon.errors import ConversionError, SurgeonError
from surgeon.exporting import export
from surgeon.network.sources import resolve
from surgeon.network.weights import varied_input
from surgeon.runtime.photos import load_photo
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error
from tests.networks import Deep, Several, build, deep

SHAPE = Deep.input_shape


class Branching(Deep):
    """Data decides, in a module of its own."""

    class Flow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), self.Flow())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x)).mean((2, 3))


class Exotic(Deep):
    """Operators that have no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(self.features(x).mode(3).values.flatten(1).tanh())


def exotic() -> nn.Module:
    return build(Exotic).float()


def branching() -> nn.Module:
    return build(Branching).float()


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return varied_input(batch, SHAPE, torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "body"
    export("tests.networks:deep", folder, Recipe(at=("body",)), formats=("onnx",))
    return folder


def features_by_hand(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """What autograd is asked for, written out without hooks."""
    stem = module.stem[1](module.stem[0](x))
    if name == "stem.1":
        return stem
    body = module.body(stem.relu())
    if name == "body":
        return body
    first = F.relu(body - 0.1)
    if name == "relu_1":  # the node of the functional one
        return first
    return F.relu(module.top(F.relu(first - 0.2)))  # relu: its second call


@pytest.mark.parametrize("network", [Deep, Several])
@pytest.mark.parametrize("name", ["stem.1", "body", "relu", "relu_1"])
def test_the_pullback_starts_at_a_layer(network: type[nn.Module], name: str) -> None:
    module = build(network)
    graph = rewrite(module, images(), Recipe(gate="hard", at=(name,)))
    for batch in (1, 3):
        x = images(batch, seed=batch).requires_grad_(True)
        expected = features_by_hand(module, name, x)
        g = torch.randn_like(expected)
        (gradient,) = torch.autograd.grad(expected, x, g)
        output, pulled = graph(x.detach(), g)
        assert torch.allclose(output, expected, rtol=1e-12)
        assert (pulled - gradient).norm() <= 1e-10 * gradient.norm() > 0


@pytest.mark.parametrize("name", ["0", "1", "2", "3", "4"])
def test_a_layer_of_a_network_in_which_one_module_has_two_names(name: str) -> None:
    relu = nn.ReLU(inplace=True)
    layers = nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 5, 3), relu, nn.Conv2d(5, 2, 1)
    module, x = nn.Sequential(*layers).double().eval(), images()
    recipe = Recipe(gate="hard", at=(name,))
    last = 3 if name == "1" else int(name)  # the last call counts, whatever the name
    expected = module[: last + 1](x)
    g = torch.randn_like(expected)
    output, pulled = rewrite(module, x, recipe)(x, g)
    assert torch.allclose(output, expected, rtol=1e-12)
    assert relative_error(pulled, reference_pullback(module, x, g, recipe=recipe, temperature=1.0)[1]) < 1e-12


def test_soft_gates_below_a_layer_agree_with_the_oracle() -> None:
    module, x = deep().double(), images(3)
    recipe = Recipe(at=("relu",))
    graph = rewrite(module, images(), recipe)
    g = torch.randn(3, 5, 9, 8, dtype=torch.float64)
    output, expected = reference_pullback(module, x, g, recipe=recipe, temperature=0.7)
    found, pulled = graph(x, g, torch.tensor(0.7, dtype=x.dtype))
    assert torch.allclose(found, output) and (pulled - expected).norm() < 1e-10 * expected.norm()


def test_nothing_above_the_layer_is_kept(bundle: Path) -> None:
    for name in ("pullback.onnx", "ascent_step.onnx", "ascent.onnx"):
        graph = onnx.load(bundle / name, load_external_data=False).graph
        inner = [*graph.node, *(node for loop in graph.node for a in loop.attribute for node in a.g.node)]
        modules = {entry.value for node in inner for entry in node.metadata_props if entry.key == "surgeon.module"}
        assert modules >= {"stem.0", "stem.2", "body"} and not modules & {"relu", "top", "head"}
        names = {initializer.name for initializer in graph.initializer}
        assert not [each for each in names if "top" in each or "head" in each or "unused" in each]
    convolutions = 4 * (3 * 9 + 1) + 6 * (4 * 9 + 1)
    assert (bundle / "weights.bin").stat().st_size < 4 * (convolutions + 16)


def test_a_layer_that_is_not_there_or_gives_no_tensor() -> None:
    module = deep().double()
    for name, words in (
        ("stemm.1", r"no layer 'stemm.1'. Did you mean .*stem.1"),
        ("relu_9", r"Did you mean .*relu_\d"),
        ("", "no layer ''"),
        ("unused", "the layer 'unused' does not run"),
    ):
        with pytest.raises(SurgeonError, match=words):
            rewrite(module, images(), Recipe(at=(name,)))
    with pytest.raises(ConversionError, match=r"Several returns a dict of 2: out \[N, 7\], features .*--at"):
        rewrite(build(Several), images())


def test_a_node_is_verified_too(tmp_path: Path) -> None:
    bundle = export("tests.networks:deep", tmp_path / "node", Recipe(at=("relu_1",)), formats=("onnx",))
    assert bundle.manifest.verification and bundle.manifest.labels is None
    with pytest.raises(SurgeonError, match="does not tell gates that are modules"):
        recipe = Recipe(at=("relu_1",), gate_scope="modules")
        export("tests.networks:deep", tmp_path / "no", recipe, formats=("onnx",))


def test_a_layer_in_half_precision(tmp_path: Path) -> None:
    recipe = Recipe(at=("body",), precision="fp16")
    session = surgeon.load(export(deep(), tmp_path / "half", recipe, input_shape=SHAPE, formats=("onnx",)).path)
    x = images().float().numpy()
    assert session.pullback(x, session.at_units([(1,), (2,)])).output.dtype == numpy.float32


def test_a_unit_is_a_channel_or_a_place_of_it(bundle: Path) -> None:
    session, module = surgeon.load(bundle), deep()
    x = images().float()
    cotangent = session.at_units([(2,), (5, 3, 4)])
    assert cotangent.shape == (2, 6, 9, 8) and cotangent.sum() == 72 + 1 and cotangent[1, 5, 3, 4] == 1
    found = session.pullback(x.numpy(), cotangent, 0.7)
    recipe = Recipe(at=("body",))
    expected = reference_pullback(module, x, torch.from_numpy(cotangent), recipe=recipe, temperature=0.7)[1]
    assert relative_error(torch.from_numpy(found.pullback), expected) < 1e-5
    assert session.unit("5, 3,4") == (5, 3, 4) and session.label((5, 3, 4)) == "channel 5 at 3,4"
    for text, words in (("6", "channels 0 to 5 with y 0 to 8, x 0 to 7 at body"), ("1,2", "no unit"), ("a", "'a'")):
        with pytest.raises(SurgeonError, match=words):
            session.unit(text)
    with pytest.raises(SurgeonError, match="no row of classes"):
        session.one_hot(0)


def test_run_and_figure_climb_units(run, bundle: Path) -> None:
    code, out, err = run("run", bundle, "cat.png", "--unit", "4,2,2", "--json")
    report = json.loads(out)["photos"][0]
    assert (code, err, report["target"]) == (0, "", None)
    assert report["unit"] == {"layer": "body", "place": [4, 2, 2]} and report["score"][-1] > report["score"][0]
    assert "body unit 4" in run("run", bundle, "cat.png", "--unit", "4")[1]
    code, out, _ = run("figure", "grid", bundle, "cat.png", "--unit", "4", "--unit", "1,2,3", "-o", "f.png", "--json")
    assert code == 0 and json.loads(out)["rows"][0]["targets"] == [[4], [1, 2, 3]] and Path("f.png").is_file()
    code, out, err = run("figure", "steps", bundle, "cat.png", "--steps", "0,2", "--unit", "4", "-o", "g.png", "--json")
    assert (code, err) == (0, "") and json.loads(out)["rows"][0]["target"] == [4]


def test_an_atlas_of_the_strongest_units(run, bundle: Path) -> None:
    code, out, err = run("figure", "units", bundle, "cat.png", "--count", "4", "-o", "f.svg", "--json")
    report = json.loads(out)
    assert (code, err, report["panels"]) == (0, "", ["cat.png: the 4 strongest units of body"])
    session = surgeon.load(bundle)
    image = load_photo("cat.png", session.manifest.image)
    with torch.no_grad():
        sums = deep().body(deep().stem(torch.from_numpy(image[None]))).sum((2, 3))[0]
    assert report["rows"][0]["strongest"] == {"body": [[int(channel)] for channel in sums.argsort(descending=True)[:4]]}
    assert Path("f.svg").read_text().count("<image") == 1 + 2 * 4


def test_units_and_classes_refuse_each_others_bundles(run, bundle: Path, digits_bundle: Path) -> None:
    for command in (["run"], ["figure", "grid"]):
        for arguments in ([], ["--target", "1"], ["--unit", "1", "--target", "1"]):
            code, _, err = run(*command, bundle, "cat.png", *arguments)
            assert code == 1 and "channels 0 to 5" in err and "--unit CHANNEL" in err and err.count("\n") == 1
        code, _, err = run(*command, digits_bundle, "cat.png", "--unit", "1")
        assert code == 1 and "--target" in err and err.count("\n") == 1
        code, _, err = run(*command, bundle, "cat.png", "--unit", "6")
        assert code == 1 and "there is no unit 6. There are channels 0 to 5" in err


def test_layers_are_listed(run) -> None:
    found = {layer.name: layer for layer in layers(deep(), images().float())}
    assert list(found)[:4] == ["stem", "stem.0", "stem.1", "stem.2"] and "unused" not in found
    assert (found["relu"].calls, found["relu"].gates, found["stem"].gates) == (2, 2, 1)
    assert found["body"].shape == ("N", 6, 9, 8) and found["relu_1"].kind == "aten.relu.default"
    code, out, err = run("inspect", "tests.networks:deep", "--show", "layers", "--json")
    listed = json.loads(out)["layers"]
    assert (code, err) == (0, "") and listed[0]["parameters"] == 120
    module = deep().double()
    for layer in listed:
        rewrite(module, images(), Recipe(gate="hard", at=(layer["name"],)))
    assert "max_pool2d_with_indices" in run("inspect", "tests.networks:deep", "--show", "layers")[1]


def test_check_says_how_each_operator_is_treated(run) -> None:
    code, out, err = run("check", "tests.networks:deep", "--json")
    report = json.loads(out)
    assert (code, err, report["convertible"], report["failing_module"]) == (0, "", True, None)
    treated = {(one["operator"], one["treatment"]): one["count"] for one in report["operators"]}
    assert treated[("aten.relu.default", "gate")] == 4
    assert treated[("aten.convolution.default", "rule")] == 3
    assert report["totals"]["pool"] == 1 and report["totals"]["unsupported"] == 0
    code, out, _ = run("check", "tests.networks:deep", "--at", "body")
    assert code == 0 and "linear" not in out and "converts" in out


def test_check_names_everything_that_has_no_rule(run) -> None:
    code, out, err = run("check", "tests.network.test_layers:exotic", "--json")
    report = json.loads(out)
    assert (code, report["convertible"], err.count("\n")) == (4, False, 1)
    refused = {one["operator"]: one for one in report["operators"] if one["treatment"] == "unsupported"}
    assert set(refused) == {"aten.mode.default", "aten.erfinv.default"}
    place = refused["aten.erfinv.default"]["places"][0]
    assert place["line"].startswith("test_layers.py:") and "no pullback rule" in place["reason"]
    code, out, err = run("check", "tests.network.test_layers:exotic")
    assert code == 4 and "unsupported" in out and "erfinv" in err and "aten.mode" in err
    code, _, err = run("export", "tests.network.test_layers:exotic", "-o", "exotic")
    assert code == 4 and "erfinv" in err and "aten.mode" in err and not Path("exotic").exists()


def test_check_names_the_smallest_piece_that_cannot_be_recorded(run) -> None:
    code, out, err = run("check", "tests.network.test_layers:branching", "--json")
    piece = json.loads(out)["failing_module"]
    assert (code, piece["module"], piece["kind"]) == (4, "block.1", "Flow")
    assert "test_layers.py:" in piece["reason"] and err.count("\n") == 1
    assert "block.1 (Flow)" in run("check", "tests.network.test_layers:branching")[1]


@pytest.mark.slow
def test_a_channel_inside_resnet50(tmp_path: Path) -> None:
    source = resolve("resnet50", weights="random", input_shape=(3, 64, 64))
    recipe = Recipe(at=("layer3.2.conv2",))
    bundle = export(source, tmp_path / "resnet50", recipe, formats=("onnx",))
    session = surgeon.load(bundle.path)
    x = varied_input(3, (3, 64, 64), torch.Generator().manual_seed(5))
    cotangent = session.at_units([(17,), (17, 1, 2), (200,)])
    found = session.pullback(x.numpy(), cotangent, 0.5)
    output, expected = reference_pullback(source.module, x, torch.from_numpy(cotangent), recipe=recipe, temperature=0.5)
    errors = [relative_error(torch.from_numpy(a), b) for a, b in ((found.output, output), (found.pullback, expected))]
    print(f"resnet50 layer3.2.conv2: output {errors[0]:.1e}, pullback {errors[1]:.1e}")
    assert max(errors) < 1e-5
    above = ("layer3.2.bn2", "layer3.2.conv3", "layer3.3", "layer3.4", "layer3.5", "layer4", "fc", "avgpool")
    graph = onnx.load(bundle.path / "pullback.onnx", load_external_data=False).graph
    modules = {entry.value for node in graph.node for entry in node.metadata_props if entry.key == "surgeon.module"}
    assert any(name.endswith("layer3.2.conv2") for name in modules)
    for name in [*modules, *(initializer.name for initializer in graph.initializer)]:
        assert not name.removeprefix("network.").startswith(above)
