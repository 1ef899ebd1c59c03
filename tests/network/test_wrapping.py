"""Names of modules under preprocessing: a network whose own module is called `network` is not taken for a wrapper."""

from __future__ import annotations

import collections
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.analysis.inspect.convertibility import check
from surgeon.analysis.inspect.model_summary import layers
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import capture
from surgeon.errors import SurgeonError
from surgeon.network.sources import Source, resolve
from surgeon.network.wrapping import INNER, source_modules, source_name


class Both(nn.Module):
    """Has `conv` and `network.conv`, each with a gate behind it; the first has 3 channels, the second 4."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.network = nn.Sequential(
            collections.OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1), act=nn.ReLU(), top=nn.Conv2d(4, 5, 8))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.act(self.conv(x))).flatten(1)


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(5)
    return resolve(Both(), preprocess="imagenet")


@pytest.mark.parametrize(
    ("name", "short"),
    [("conv", "conv"), (INNER, ""), (f"{INNER}.{INNER}.network.conv", "network.conv"), (f"{INNER}s.a", f"{INNER}s.a")],
)
def test_wrappers_are_taken_off_a_name(name: str, short: str) -> None:
    assert source_name(name) == short


@pytest.mark.parametrize(("at", "channels"), [("conv", 3), ("network.conv", 4)])
def test_a_layer_is_the_one_of_that_name(source: Source, at: str, channels: int) -> None:
    captured = capture(source.module, torch.zeros(2, 3, 8, 8), (at,))
    assert captured.layers == {at: "module"}
    assert captured.outputs[0].meta["val"].shape[1] == channels


def test_a_wrapper_is_no_layer(source: Source) -> None:
    with pytest.raises(SurgeonError, match=r"no layer 'network\.network'"):
        capture(source.module, torch.zeros(2, 3, 8, 8), ("network.network",))
    assert list(source_modules(source.module)) == [
        "conv", "act", "network", "network.conv", "network.act", "network.top",
    ]  # fmt: skip


def test_reports_name_modules_as_the_author_does(source: Source) -> None:
    x = torch.zeros(2, 3, 8, 8)
    named = {layer.name: layer.shape for layer in layers(source.module, x)}
    assert named["conv"] == ("N", 3, 8, 8) and named["network.conv"] == ("N", 4, 8, 8)
    places = [place.module for found in check(source.module, x).operators for place in found.places]
    assert {"conv", "network.conv", "act", "network.act"} <= set(places)


def test_temperatures_parameters_and_metadata_name_the_right_module(source: Source, tmp_path: Path) -> None:
    recipe = Recipe(temperatures=(("act", 0.5), ("network.act", 2.0)))
    bundle = surgeon.export(source, tmp_path / "both", recipe, formats=("onnx",))  # verified against autograd
    assert [(gate.module, gate.temperature) for gate in bundle.manifest.gates] == [("act", 0.5), ("network.act", 2.0)]
    model = onnx.load(bundle.path / "pullback.onnx")
    weights = {value.name: tuple(value.dims) for value in model.graph.initializer}
    assert weights["conv.weight"] == (3, 3, 3, 3) and weights["network.conv.weight"] == (4, 3, 3, 3)
    assert not any(INNER in text for text in (*weights, bundle.manifest.to_json()))
    modules = [prop.value for node in model.graph.node for prop in node.metadata_props if prop.key == "surgeon.module"]
    assert {"conv", "act", "network.conv", "network.act", "network.top"} <= set(modules)
    assert not any(INNER in module for module in modules)
