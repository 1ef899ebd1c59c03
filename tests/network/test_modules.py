"""Modules that cannot be converted as they are: each one says so in a line, and what to do; and copies of others."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional

from surgeon.analysis.inspect.convertibility import check
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.rewriting import rewrite
from surgeon.errors import ConversionError, SurgeonError, VerificationError
from surgeon.exporting import export
from surgeon.network.inputs import example
from surgeon.network.sources import resolve
from surgeon.verify.verify import verify

SHAPE = (3, 8, 8)


class Net(nn.Module):
    input_shape = SHAPE

    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.head = first or nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Any) -> Tensor:
        features: Tensor = self.conv(x).relu().mean((2, 3))
        return self.head(features)


class OfDict(Net):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x["image"])


class OfPair(Net):
    def forward(self, x: Any) -> Tensor:
        first, second = x
        return super().forward(first) + super().forward(second)


class OfList(Net):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x[0])


class Autocast(Net):
    def forward(self, x: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def plain(function: Callable[[], nn.Module]) -> nn.Module:
    """What a deprecated call makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


def for_training() -> nn.Module:
    module = Net().train()
    module.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(module)


def scripted_conv() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))


NOT_CAPTURED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(8, 2))), r"network \(Sequential\) is TorchScript"),
    "traced": (
        lambda: torch.jit.trace(Net(), torch.ones(1, *SHAPE)),
        r"\(Net\) is TorchScript. Give the Python module",
    ),
    "one scripted": (lambda: Net(scripted_conv()), r"module conv \(Sequential\) is TorchScript"),
    "lazy": (lambda: Net(nn.LazyConv2d(4, 3)), r"conv \(LazyConv2d\) has parameters without a shape yet. Run it once"),
    "quantised": (
        lambda: quantization.quantize_dynamic(Net(), {nn.Linear}, torch.qint8),
        r"module head \(Linear\) rounds .* before it was quantised",
    ),
    "rounding": (for_training, r"conv.weight_fake_quant \(.*\) rounds to whole numbers"),
}


@pytest.mark.parametrize("name", NOT_CAPTURED)
def test_what_cannot_be_captured_is_one_line(name: str, tmp_path: Path) -> None:
    make, words = NOT_CAPTURED[name]
    module = plain(make)
    with pytest.raises(ConversionError, match=words):
        export(module, tmp_path / "out", input_shape=SHAPE)
    with pytest.raises(ConversionError, match=words):
        rewrite(module, torch.zeros(2, *SHAPE))


def test_networks_that_are_only_made_to_be_quantised_convert() -> None:
    class Quantisable(Net):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.begin, self.end = FloatFunctional(), quantization.QuantStub(), quantization.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            x = self.begin(x)
            return self.end(super().forward(self.sum.add(x, x)))

    module = plain(Quantisable).eval()
    x = torch.rand(2, *SHAPE)
    output, _ = rewrite(module, x)(x, torch.ones_like(module(x)), torch.tensor(0.3))
    assert torch.allclose(output, module(x), atol=1e-6)


INPUTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "half": (lambda: Net().half(), r"parameters are float16. Call \.float\(\)"),
    "bfloat16": (lambda: Net().bfloat16(), r"parameters are bfloat16. Call \.float\(\)"),
    "double": (lambda: Net().double(), r"parameters are float64. Call \.float\(\)"),
    "a dict": (OfDict, "takes a dict with 'image', and not a tensor. Wrap it"),
    "a list": (OfList, "takes a list or tuple, and not a tensor"),
    "a pair": (OfPair, "takes a list or tuple, and not a tensor"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_the_network_takes_instead(name: str) -> None:
    make, words = INPUTS[name]
    source = resolve(make())
    with pytest.raises(SurgeonError, match=words):
        rewrite(source.module, example(SHAPE, ()))
    try:
        refusal = check(source.module, example(SHAPE, ())).refusal
    except SurgeonError as error:
        refusal = error
    assert refusal is not None and words.partition(".")[0] in str(refusal)


def test_another_shape_is_still_said_as_it_was() -> None:
    with pytest.raises(SurgeonError, match="does not take an input of shape 4,8,8"):
        rewrite(Net(), torch.zeros(2, 4, 8, 8))


def normed() -> nn.Module:
    """Its weight is no leaf: it is computed from two parameters."""
    return Net(plain(lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))).eval()


@pytest.mark.filterwarnings("ignore:The tensor attribute self")  # torch.export's, of what the hook assigns
def test_weight_norm_of_old(tmp_path: Path) -> None:
    """Copied when it is resolved, and in both precisions as it is verified."""
    module = normed()
    weight = module.conv.weight
    assert not weight.is_leaf
    bundle = export(module, tmp_path / "out", Recipe(), formats=("onnx",))
    assert bundle.manifest.verification and module.conv.weight is weight
    source = dataclasses.replace(resolve(module), module=normed())
    half = export(source, tmp_path / "again", Recipe(precision="fp16"), formats=("onnx",))
    assert half.manifest.verification


def test_a_network_without_numbers(tmp_path: Path, exported) -> None:
    module = Net()
    with torch.no_grad():
        module.head.weight[0, 0] = float("nan")
    with pytest.raises(VerificationError, match=r"output is not finite: head\.weight holds NaN"):
        export(module, tmp_path / "out", formats=("onnx",))
    assert not (tmp_path / "out").exists()

    class Root(Net):
        def forward(self, x: Any) -> Tensor:
            return super().forward(x) + (x.sum((1, 2, 3)) * 0).sqrt()[:, None]

    with pytest.raises(VerificationError, match="gradient is not finite"):
        verify(exported(Net), Root().eval())


def test_autocast_in_the_forward(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="computes in bfloat16, as under autocast"):
        export(Autocast(), tmp_path / "out", formats=("onnx",))
