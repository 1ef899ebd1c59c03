"""What a pullback starts at: entries of what a network returns, and several layers in one artifact."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.analysis.inspect.model_summary import layers
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.passes.optimise import optimise
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import rewrite
from surgeon.errors import ConversionError, SurgeonError
from surgeon.exporting import export
from surgeon.network.layers import entries
from surgeon.verify.cases import comparable
from surgeon.verify.oracle.reference import forward, reference_pullback
from surgeon.verify.verify import relative_error
from tests.networks import Deep, build, deep, example


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return example(Deep, batch, seed)


Pair = collections.namedtuple("Pair", ["low", "high"])


class Answer(collections.OrderedDict):
    """As transformers returns it: a mapping that torch.export has never heard of."""


class Returning(Deep):
    """Returns what `pack`, which each test chooses, makes of three tensors."""

    pack: Any

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        logits = self.head(F.max_pool2d(features, 2).mean((2, 3)))
        return self.pack(logits, features, self.stem(x))


PACKINGS = {
    "dict": (lambda a, b, c: {"out": a, "aux": b, "loss": None}, {"out": 0, "aux": 1}),
    "tuple": (lambda a, b, c: (a, b, c), {"0": 0, "2": 2, "-2": 1}),
    "named tuple": (lambda a, b, c: Pair(b, a), {"high": 0, "0": 1, "-1": 0}),
    "nested": (lambda a, b, c: {"logits": a, "flows": [b, Pair(c, b)]}, {"flows.0": 1, "flows.-1.low": 2, "logits": 0}),
    "mapping": (lambda a, b, c: Answer(logits=a, hidden=(b, c)), {"logits": 0, "hidden.1": 2}),
    "dots": (lambda a, b, c: {"a.b": a, "a": {"c": b}}, {"a.b": 0, "a.c": 1}),
}


def returning(packing: str) -> nn.Module:
    network = type(Returning.__name__, (Returning,), {"pack": staticmethod(PACKINGS[packing][0])})
    return build(network)


def captured_at(module: nn.Module, *names: str, dynamic_size: bool = False) -> Captured:
    """The graph that ends at these layers, as rewriting optimises it."""
    captured = capture(module, images(), names, dynamic_size)
    optimise(captured.graph)
    return captured


def tensors(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors of a Returning, without what packs them."""
    stem = F.relu(module.stem[1](module.stem[0](x)))
    first = F.relu(module.body(stem) - 0.1)
    features = F.relu(module.top(F.relu(first - 0.2)))
    return module.head(F.max_pool2d(features, 2).mean((2, 3))), features, stem


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_pullback_starts_at_an_entry(packing: str) -> None:
    module = returning(packing)
    for name, place in PACKINGS[packing][1].items():
        captured = captured_at(module, name)
        x = images(3, seed=1).requires_grad_(True)
        expected = tensors(module, x)[place]
        g = torch.randn_like(expected)
        (gradient,) = torch.autograd.grad(expected, x, g)
        output, pulled = PullbackModule(captured, Recipe(gate="hard", at=(name,)))(x.detach(), g)
        assert torch.allclose(output, expected, rtol=1e-12), name
        assert (pulled - gradient).norm() <= 1e-10 * gradient.norm() > 0, name
        recipe = Recipe(at=(name,))
        same, oracle = reference_pullback(module, x.detach(), g, recipe=recipe, temperature=0.7)
        soft = PullbackModule(captured, recipe)(x.detach(), g, torch.tensor(0.7, dtype=x.dtype))
        assert torch.equal(same, expected) and (soft[1] - oracle).norm() <= 1e-10 * oracle.norm()


def test_entries_have_names() -> None:
    a, b = torch.zeros(2, 3), torch.ones(2)
    assert list(entries({"out": a, "flows": (a, [b]), "none": None})) == ["out", "flows.0", "flows.1.0"]
    every = entries((a, Pair(b, a)), every_name=True)
    assert list(every) == [
        "0",
        "-2",
        *(f"{row}.{of}" for row in ("1", "-1") for of in ("low", "0", "-2", "high", "1", "-1")),
    ]
    assert entries(a) == entries("text") == {}


def test_a_container_of_one_tensor_needs_no_name_and_one_of_several_does(run, tmp_path: Path) -> None:
    class Single(Deep):
        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"out": [super().forward(x)]}

    module, x = build(Single), images(3)
    output, pulled = rewrite(module, images(), Recipe(gate="hard"))(x, torch.eye(7)[:3].double())
    expected = build(Deep)(x.requires_grad_(True))
    assert torch.allclose(output, expected)
    (gradient,) = torch.autograd.grad(expected, x, torch.eye(7)[:3].double())
    assert (pulled - gradient).norm() <= 1e-10 * gradient.norm() > 0
    with pytest.raises(
        ConversionError, match=r"a dict of 2: out \[N, 7\], aux \[N, 5, 9, 8\]; .*Name one with --at out"
    ):
        rewrite(returning("dict"), images())
    with pytest.raises(SurgeonError, match=r"no layer 'auks'\. Did you mean aux"):
        rewrite(returning("dict"), images(), Recipe(at=("auks",)))
    code, _, err = run("check", "tests.networks:several")
    assert code == 4 and "--at out" in err and err.count("\n") == 1


def test_a_module_comes_before_an_entry_and_that_before_a_node() -> None:
    class Ambiguous(Deep):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = F.relu(self.body(self.stem(x)))
            return {"body": y - 1, "relu_1": y - 2}  # relu_1 is also the node of the functional ReLU

    module, x = build(Ambiguous), images(3)
    raw = module.body(module.stem(x))
    for name, expected in (("body", raw), ("relu_1", F.relu(raw) - 2)):
        assert torch.allclose(captured_at(module, name).graph(x), expected)


def test_entries_are_listed_and_every_listed_one_converts(run) -> None:
    module = returning("nested")
    found = {layer.name: layer for layer in layers(module, images())}
    assert [name for name, layer in found.items() if layer.kind == "entry"] == [
        "logits",
        "flows.0",
        "flows.1.low",
        "flows.1.high",
    ]
    assert found["flows.0"].shape == ("N", 5, 9, 8)
    code, out, _ = run("inspect", "tests.networks:several", "--show", "layers", "--json")
    listed = [layer["name"] for layer in json.loads(out)["layers"] if layer["kind"] == "entry"]
    assert (code, listed) == (0, ["out", "features"])
    assert run("check", "tests.networks:several", "--at", "features", "--at", "out")[0] == 0


ALL = ("stem.1", "relu", "body", "aux", "out")
"""Modules in no order, one of them read in place by the next, and both entries."""


def by_hand(module: nn.Module, x: Tensor) -> list[Tensor]:
    logits, features, stem = tensors(module, x)
    return [module.stem[1](module.stem[0](x)), features, module.body(stem), features, logits]


@pytest.mark.parametrize("names", [ALL, ("relu_1", "body"), ("out", "relu_1", "max_pool2d_with_indices", "relu")])
def test_several_layers_are_one_output(names: tuple[str, ...]) -> None:
    """Each cotangent by itself gives its layer's gradient, and together they give the sum."""
    module = returning("dict")
    if "max_pool2d_with_indices" in names:
        listed = [layer.name for layer in layers(module, images()) if "max_pool" in layer.kind]
        names = tuple(listed[0] if name == "max_pool2d_with_indices" else name for name in names)
    graph = PullbackModule(captured_at(module, *names), Recipe(gate="hard", at=names))
    for batch in (1, 3):
        x = images(batch, seed=batch).requires_grad_(True)
        _, features, stem = tensors(module, x)
        first = F.relu(module.body(stem) - 0.1)
        known = dict(zip(ALL, by_hand(module, x), strict=True)) | {"relu_1": first}
        outputs = [known.get(name, F.max_pool2d(features, 2)) for name in names]
        cotangents = [torch.randn_like(output) for output in outputs]
        (gradient,) = torch.autograd.grad(outputs, x, cotangents)
        output, pulled = graph(x.detach(), torch.cat([g.flatten(1) for g in cotangents], 1))
        assert torch.allclose(output, torch.cat([output.flatten(1) for output in outputs], 1), rtol=1e-12)
        assert (pulled - gradient).norm() <= 1e-10 * gradient.norm() > 0


@pytest.mark.parametrize("names", [ALL, ("body", "relu_1")])
def test_the_oracle_takes_several_layers(names: tuple[str, ...]) -> None:
    module, x, recipe = returning("dict"), images(3, seed=3), Recipe(at=names)
    graph = PullbackModule(captured_at(module, *names), recipe)
    theirs, own = comparable(module, recipe, images())
    assert (own.at == names) is ("relu_1" not in names)
    with torch.no_grad():
        g = torch.randn_like(forward(theirs, x, own.at))
    output, expected = reference_pullback(theirs, x, g, recipe=own, temperature=0.7)
    found, pulled = graph(x, g, torch.tensor(0.7, dtype=x.dtype))
    assert torch.allclose(found, output) and (pulled - expected).norm() <= 1e-10 * expected.norm() > 0


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    """Of two layers, the higher one first."""
    return exported("tests.networks:deep", at=("body", "stem.1"), formats=("torchscript", "onnx"), check=True)


def test_a_bundle_says_which_slice_is_whose(bundle: Path, run) -> None:
    session = surgeon.load(bundle)
    assert [(one.name, one.kind, one.shape, one.start) for one in session.layers] == [
        ("body", "module", (6, 9, 8), 0),
        ("stem.1", "module", (4, 9, 8), 432),
    ]
    assert session.output_shape == (720,) and session.manifest.recipe.at == ("body", "stem.1")
    assert {line.artifact for line in session.manifest.verification} == set(session.manifest.artifacts)
    assert all(line.passed for line in session.manifest.verification)
    code, out, _ = run("inspect", bundle)
    assert code == 0 and "body, stem.1" in out and "[4, 9, 8]" in out and "720" in out
    assert run("verify", bundle)[0] == 0


def test_nothing_above_the_highest_layer_is_kept(bundle: Path) -> None:
    for name in ("pullback.onnx", "ascent_step.onnx", "ascent.onnx"):
        graph = onnx.load(bundle / name, load_external_data=False).graph
        inner = [*graph.node, *(node for loop in graph.node for a in loop.attribute for node in a.g.node)]
        modules = {entry.value for node in inner for entry in node.metadata_props if entry.key == "surgeon.module"}
        assert modules >= {"stem.0", "stem.2", "body"} and not modules & {"relu", "top", "head"}
        names = {initializer.name for initializer in graph.initializer}
        assert not [each for each in names if "top" in each or "head" in each or "unused" in each]


def test_split_and_join(bundle: Path) -> None:
    session, module = surgeon.load(bundle), deep()
    x = images(3, seed=7).float()
    random = numpy.random.default_rng(0)
    g = {"stem.1": random.normal(size=(3, 4, 9, 8)), "body": random.normal(size=(3, 6, 9, 8))}
    g = {name: value.astype(numpy.float32) for name, value in g.items()}
    output, pulled = session.pullback(x.numpy(), session.join(g), 0.7)
    parts = session.split(output)
    assert list(parts) == ["body", "stem.1"]
    with torch.no_grad():
        stem = module.stem[1](module.stem[0](x))
        assert relative_error(torch.from_numpy(parts["stem.1"]), stem) < 1e-5
        assert relative_error(torch.from_numpy(parts["body"]), module.body(stem.relu())) < 1e-5
    pieces = [
        reference_pullback(module, x, torch.from_numpy(g[name]), recipe=Recipe(at=(name,)), temperature=0.7)[1]
        for name in g
    ]
    assert relative_error(torch.from_numpy(pulled), sum(pieces)) < 1e-5
    assert numpy.array_equal(session.split(session.join(g))["body"], g["body"])
    assert not session.split(session.join({"body": g["body"]}))["stem.1"].any()
    with pytest.raises(SurgeonError, match=r"no layer 'top'\. Its layers are body, stem.1"):
        session.join({"top": g["body"]})
    with pytest.raises(SurgeonError, match=r"at body has shape \[3, 4, 9, 8\], not \[N, 6, 9, 8\]"):
        session.join({"body": g["stem.1"]})
    with pytest.raises(SurgeonError, match="2 batches"):
        session.join({"body": g["body"][:1], "stem.1": g["stem.1"]})


def test_a_unit_names_its_layer(bundle: Path, run) -> None:
    session = surgeon.load(bundle)
    cotangent = session.at_units([("body", 5), ("stem.1", 3, 8, 7)])
    assert cotangent.shape == (2, 720) and cotangent[0, 360:432].all() and cotangent[0].sum() == 72
    assert cotangent[1, 719] == 1 == cotangent[1].sum()
    assert session.unit("stem.1:3, 1,2") == ("stem.1", 3, 1, 2) and session.label(("body", 2)) == "body channel 2"
    for text, words in (
        ("2", "names no layer. There are channels 0 to 5 .* at body; channels 0 to 3 .* at stem.1"),
        ("top:2", "no layer 'top'"),
        ("stem.1:4", "no unit stem.1:4. There are channels 0 to 3"),
        ("body:x", "Write LAYER:CHANNEL"),
    ):
        with pytest.raises(SurgeonError, match=words):
            session.unit(text)
    code, out, err = run("run", bundle, "cat.png", "--unit", "stem.1:2,3,3", "--json")
    report = json.loads(out)["photos"][0]
    assert (code, err) == (0, "") and report["unit"] == {"layer": "stem.1", "place": [2, 3, 3]}
    assert report["score"][-1] > report["score"][0]
    code, out, _ = run(
        "figure", "grid", bundle, "cat.png", "--unit", "body:4", "--unit", "stem.1:1", "-o", "f.png", "--json"
    )
    assert code == 0 and json.loads(out)["rows"][0]["targets"] == [["body", 4], ["stem.1", 1]]
    code, out, _ = run("figure", "units", bundle, "cat.png", "--count", "2", "-o", "g.png", "--json")
    found = json.loads(out)["rows"][0]["strongest"]
    assert code == 0 and {name: [layer for layer, _ in units] for name, units in found.items()} == {
        "body": ["body"] * 2,
        "stem.1": ["stem.1"] * 2,
    }


def test_layers_that_do_not_go_together(tmp_path: Path) -> None:
    module = build(Deep)
    for names, words in (
        (("body", "body"), "the layer 'body' is named twice"),
        (("body", "bodi"), "no layer 'bodi'. Did you mean body"),
        (("body", "relu_9"), "no layer 'relu_9'. Did you mean relu"),
        (("relu_1", "unused"), "'unused' does not run"),
    ):
        with pytest.raises(SurgeonError, match=words):
            rewrite(module, images(), Recipe(at=names))
    with pytest.raises(SurgeonError, match="layers stem and body make no one output where height and width are free"):
        rewrite(module, images(), Recipe(at=("stem", "body"), dynamic_size=True))
    with pytest.raises(SurgeonError, match=r"Write at=\('body',\)"):
        Recipe(at="body")  # type: ignore[arg-type]

    class Constant(Deep):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(x), "ones": torch.ones_like(x)}

    with pytest.raises(ConversionError, match="the layer ones does not depend on the input"):
        rewrite(build(Constant), images(), Recipe(at=("out", "ones")))


@pytest.mark.parametrize("name", ["aux", "relu_1"])
def test_one_layer_of_any_size_in_a_network_of_several_outputs(name: str) -> None:
    module = returning("dict")
    recipe = Recipe(gate="hard", at=(name,), dynamic_size=True)
    graph = PullbackModule(captured_at(module, name, dynamic_size=True), recipe)
    x = torch.rand(3, 3, 12, 15, dtype=torch.float64, requires_grad=True)
    _, features, stem = tensors(module, x)
    expected = features if name == "aux" else F.relu(module.body(stem) - 0.1)
    g = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, g)
    output, pulled = graph(x.detach(), g)
    assert torch.allclose(output, expected) and (pulled - gradient).norm() <= 1e-10 * gradient.norm() > 0


def test_entries_in_half_precision(tmp_path: Path) -> None:
    recipe = Recipe(at=("aux", "body"), precision="fp16")
    found = export(returning("dict").float(), tmp_path / "half", recipe, formats=("onnx",))
    assert all(line.passed for line in found.manifest.verification)


def test_temperatures_of_their_own_with_several_layers() -> None:
    module, x = deep().double(), images(3, seed=3)
    recipe = Recipe(at=("stem.2", "relu", "body"), temperature_input="per-gate")
    graph = PullbackModule(captured_at(module, *recipe.at), recipe)
    assert [gate.module for gate in graph.gates] == ["stem.2", "", "relu", "relu"]
    temperatures = torch.tensor([0.3, 0.5, 0.8, 1.2], dtype=x.dtype)
    each = [(gate.module, value) for gate, value in zip(graph.gates, temperatures.tolist(), strict=True)]
    theirs, own = comparable(module, recipe, images())
    with torch.no_grad():
        g = torch.randn_like(forward(theirs, x, own.at))
    output, expected = reference_pullback(theirs, x, g, recipe=own, temperature=each)
    found, pulled = graph(x, g, temperatures)
    assert torch.allclose(found, output) and relative_error(pulled, expected) < 1e-12


def test_a_map_for_each_class_goes_by_name(exported, run) -> None:
    bundle = exported(f"{__name__}:segmenting")
    session = surgeon.load(bundle)
    assert session.manifest.labels == ("sky", "sea", "sand") and not session.has_classes
    assert session.target("sea") == 1 and session.label((1, 2, 3)) == "sea at 2,3"
    code, out, _ = run("run", bundle, "cat.png", "--target", "sand", "--json")
    report = json.loads(out)["photos"][0]
    assert code == 0 and report["unit"] == {"layer": None, "place": [2], "label": "sand"}
    assert report["score"][-1] > report["score"][0]
    assert "output unit 0,1,1 (sky at 1,1)" in run("run", bundle, "cat.png", "--unit", "0,1,1")[1]
    assert run("figure", "grid", bundle, "cat.png", "--target", "sky", "--unit", "1", "-o", "g.png")[0] == 0
    code, _, err = run("run", bundle, "cat.png")
    assert code == 1 and "Name a class with --target, a unit with --unit" in err
    code, _, err = run("run", bundle, "cat.png", "--target", "3")
    assert code == 1 and "no class 3. The classes are 0 to 2" in err


def test_an_entry_of_classes_keeps_their_names(exported, run) -> None:
    bundle = exported(f"{__name__}:classifying", at=("logits",))
    session = surgeon.load(bundle)
    assert session.has_classes and session.target("c") == 2
    assert run("run", bundle, "cat.png", "--target", "c")[0] == 0
    assert json.loads((bundle / "manifest.json").read_text())["layers"][0]["kind"] == "entry"


def segmenting() -> nn.Module:
    class Segmenting(Deep):
        labels = ("sky", "sea", "sand")

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.features(x)[:, :3]}

    return build(Segmenting).float()


def classifying() -> nn.Module:
    class Classifying(Deep):
        labels = tuple("abcdefg")

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(x), "features": self.features(x)}

    return build(Classifying).float()


@pytest.mark.slow
def test_two_layers_of_resnet18_against_autograd() -> None:
    from surgeon.network.sources import resolve

    source = resolve("resnet18", weights="random", input_shape=(3, 64, 64))
    names = ("layer3", "layer4.1.conv2", "fc")
    module = source.module.double()
    recipe = Recipe(at=names)
    example = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    graph = rewrite(module, example, recipe)
    x = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    g = torch.randn(3, 256 * 16 + 512 * 4 + 1000, dtype=torch.float64)
    output, pulled = graph(x, g, torch.tensor(0.5, dtype=x.dtype))
    same, expected = reference_pullback(module, x, g, recipe=recipe, temperature=0.5)
    assert relative_error(output, same) < 1e-12 and relative_error(pulled, expected) < 1e-10


class OneNumber(nn.Sequential):
    """A discriminator: [N, 3, 8, 8] -> [N]."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 6), nn.Flatten(0))


@pytest.mark.parametrize("objective", ["logit", "energy"])
def test_one_number_for_each_sample(objective: str, tmp_path: Path) -> None:
    bundle = export(OneNumber(), tmp_path / "one", Recipe(objective=objective))
    assert {line.artifact for line in bundle.manifest.verification} == set(bundle.manifest.artifacts)
    session, x = surgeon.load(bundle.path), torch.rand(2, 3, 8, 8).numpy()
    cotangent = None
    if objective == "logit":
        cotangent = session.at_units([session.unit("0"), (0,)])
        assert numpy.array_equal(cotangent, [1, 1])
        assert session.pullback(x, cotangent).output.shape == (2,)
    score = session.ascent(x, cotangent, steps=2).score
    assert score.shape == (3, 2) and (score[-1] > score[0]).all()
    assert session.output_shape == () and session.label((0,)) == "channel 0"
    for call in (lambda: session.classes, lambda: session.unit("1"), lambda: session.at_units((-1,))):
        with pytest.raises(SurgeonError, match="channels 0 to 0"):
            call()


def test_one_number_has_no_classes(tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match="cross-entropy is over classes"):
        export(OneNumber(), tmp_path / "one", Recipe(objective="cross-entropy"))
