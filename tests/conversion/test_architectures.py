"""Ten small networks with the constructions that people build from, side by side in one graph: with soft gates against
the oracle, with hard gates against autograd, and under ONNX Runtime where their operators are not tested alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.bundle.manifest import Defaults, Model, Recipe
from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.passes.optimise import optimise
from surgeon.conversion.pullback import PullbackModule
from surgeon.network.sources import Source
from surgeon.network.weights import calibrate, varied_input
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error
from tests.networks import Together


class Audio(nn.Module):
    """One dimension: strided and dilated convolutions, batch norm, pools."""

    input_shape = (2, 50)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(2, 6, 9, 3, 4), nn.BatchNorm1d(6), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv1d(6, 8, 3, dilation=2), nn.BatchNorm1d(8), nn.LeakyReLU(0.1))
        self.pool, self.head = nn.MaxPool1d(3, 2, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool1d(self.second(self.pool(self.first(x))), 2)
        return self.head(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


class Film(nn.Module):
    """Three dimensions: factored convolutions, pools, cells of several sizes, and a transposed convolution."""

    input_shape = (2, 6, 10, 9)

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Sequential(nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(4), nn.ReLU())
        self.time = nn.Sequential(nn.Conv3d(4, 4, (3, 1, 1), stride=(2, 1, 1)), nn.BatchNorm3d(4), nn.ReLU())
        self.pool, self.cells = nn.MaxPool3d((1, 2, 2), ceil_mode=True), nn.AdaptiveAvgPool3d((2, 3, 2))
        self.up, self.head = nn.ConvTranspose3d(4, 2, 2, 2), nn.Linear(2 * 4 * 6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(self.time(self.pool(self.space(x))), 2, 1, 1, count_include_pad=False)
        return self.head(F.relu(self.up(self.cells(x))).flatten(1))


class UNet(nn.Module):
    """Down, up by transposed convolutions, and a concatenated skip; the output is a map."""

    input_shape = (3, 12, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = self.block(3, 4), self.block(4, 6)
        self.up = nn.ModuleList([nn.ConvTranspose2d(6, 6, 3, 2, 1, output_padding=1), nn.ConvTranspose2d(6, 4, 2, 2)])
        self.join, self.head = self.block(8, 4), nn.Conv2d(4, 2, 1)

    @staticmethod
    def block(c: int, k: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c, k, 3, padding=1, bias=False), nn.BatchNorm2d(k), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        x = F.max_pool2d(self.coarse(F.max_pool2d(fine, 2)), 2)
        for up in self.up:
            x = up(x)
        return self.head(self.join(torch.cat([fine, x], 1)))


class Dilated(nn.Module):
    """Dilated branches beside each other, grouped and depthwise convolutions, ReLU6."""

    input_shape = (4, 9, 10)

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=d, dilation=d, groups=g) for d, g in ((1, 4), (2, 2)))
        self.wide = nn.Conv2d(8, 8, (1, 5), stride=2, padding=(0, 4), dilation=(1, 2), groups=2)
        self.norm, self.gate, self.head = nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([branch(x) for branch in self.branches], 1))
        return self.head(self.gate(self.norm(self.wide(x))).mean((2, 3)))


class Pools(nn.Module):
    """Ceil mode, overlapping windows, adaptive pools, averages with and without their padding."""

    input_shape = (3, 14, 12)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.ceil, self.overlapping = nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 1, 1)
        self.average, self.padded = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.AvgPool2d(3, 2, 1)
        self.largest, self.cells, self.head = (
            nn.AdaptiveMaxPool2d((3, 1)),
            nn.AdaptiveAvgPool2d((4, 2)),
            nn.Linear(44, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.overlapping(torch.relu(self.norm(self.conv(x))))
        y = self.ceil(x)
        return self.head(
            torch.cat([self.largest(self.padded(x)).flatten(1), self.cells(self.average(y)).flatten(1)], 1)
        )


class Interpolated(nn.Module):
    """Sizes changed by every mode, up and down, as feature pyramids and segmentation heads do."""

    input_shape = (3, 8, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mix, self.head = nn.Conv2d(12, 4, 3, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        small = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        odd = F.interpolate(F.interpolate(x, size=(5, 7)), size=x.shape[-2:], mode="bicubic")
        smooth = F.interpolate(F.max_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=True)
        x = F.relu(self.mix(torch.cat([small, odd, smooth], 1)))
        return F.interpolate(self.head(x), size=(8, 6), mode="bilinear", align_corners=False)


class Padded(nn.Module):
    """Every padding mode, uneven widths among them, and a crop."""

    input_shape = (3, 7, 8)

    def __init__(self) -> None:
        super().__init__()
        modes = ("reflect", "replicate", "circular", "zeros")
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=(2, 1), padding_mode=mode) for mode in modes)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        x = F.pad(F.pad(x, (1, 2, 0, 1), mode="replicate"), (-2, 1, -1, 0), value=0.5)
        return self.head(F.pad(x, (0, 3, 1, 0), mode="circular").square().mean((2, 3)))


class Shuffled(nn.Module):
    """Channel shuffle by views, pixel shuffle, split branches, squeeze and excitation."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.shuffle, self.head = nn.PixelShuffle(2), nn.Conv2d(2, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        kept, branch = x.chunk(2, 1)
        x = torch.cat([kept, F.relu(self.branch(branch))], 1)
        x = x.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).contiguous().view(x.shape[0], 8, 8, 8)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.shuffle(x * scale)).mean((2, 3))


class Transformer(nn.Module):
    """Patches, positions and an encoder whose feed-forward parts have ReLUs."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 4, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2) + self.places).mean(1))


class Normed(nn.Module):
    """Norms that measure their input, one ReLU module that is called again and again, functional ReLUs, GELU."""

    input_shape = (3, 7, 6)

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), *(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))])
        self.norms = nn.ModuleList([nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm([6, 7, 6])])
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(conv(x)) + 0.1)
        y = F.relu(x - 0.5, inplace=True) + F.gelu(x) + F.hardswish(x - 1)
        return self.head(F.layer_norm(y.mean((2, 3)), (6,)))


DEFAULTS = Defaults(step_size=1.0, radius=2.0)
NETWORKS = (Audio, Film, UNet, Dilated, Pools, Interpolated, Padded, Shuffled, Transformer, Normed)


def built(network: type[nn.Module]) -> nn.Module:
    """Random weights, no two norms or statistics alike, evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network().eval().requires_grad_(False)
        for part in module.modules():
            if isinstance(part, (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.3)
        calibrate(module, network.input_shape, 0)
    return module


EXPORTED = (Interpolated, Padded, Shuffled, Transformer, Normed)
"""Those with operators that `test_rules` and `test_derived` do not run under ONNX Runtime one by one."""


def together(kinds: Sequence[type[nn.Module]] = NETWORKS) -> Together:
    return Together({kind.__name__: built(kind) for kind in kinds}, [kind.input_shape for kind in kinds])


def inputs(batch: int, kinds: Sequence[type[nn.Module]] = NETWORKS) -> Tensor:
    """[batch, all elements], each network's as it would be drawn for it alone."""
    generator = torch.Generator().manual_seed(3)
    return torch.cat([varied_input(batch, kind.input_shape, generator).flatten(1) for kind in kinds], 1)


def source(module: nn.Module) -> Source:
    model = Model("small", "tests", "random", "none", 0)
    return Source(module, module.input_shape, None, None, model, 0.3)


def several() -> Source:
    return source(together(EXPORTED))


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_artifacts_are_the_oracles(exported, kind: type[nn.Module]) -> None:
    session = surgeon.load(exported(several, defaults=DEFAULTS))
    module, x = together(EXPORTED), inputs(3, EXPORTED)
    read, written = module.places(x)[kind.__name__]
    alone, share = built(kind), x[:, read].unflatten(1, kind.input_shape)
    with torch.no_grad():
        v = torch.randn(alone(share).shape, generator=torch.Generator().manual_seed(4))
    output, expected = reference_pullback(alone, share, v, recipe=Recipe(), temperature=0.69)
    cotangent = numpy.zeros((3, *session.output_shape), numpy.float32)
    cotangent[:, written] = v.flatten(1)
    found = session.pullback(x.numpy(), cotangent, 0.69)
    assert relative_error(torch.from_numpy(found.output[:, written]), output.flatten(1)) < 1e-4
    assert relative_error(torch.from_numpy(found.pullback[:, read]), expected.flatten(1)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_soft_gates_export_and_verify(kind: type[nn.Module], tmp_path: Path) -> None:
    bundle = surgeon.export(source(built(kind)), tmp_path / "bundle", Recipe(), DEFAULTS, formats=["onnx"])
    lines = [line for line in bundle.manifest.verification if line.artifact == "pullback.onnx"]
    assert {line.condition for line in lines} - {"batch 1, T 0.3, tuned"} == {"batch 1, T 0.3", "batch 3, T 0.69"}
    assert all(line.error < 1e-4 for line in lines)


@pytest.fixture(scope="module")
def captured() -> tuple[Together, Captured]:
    """All of them in float64, and their graph."""
    module = together().double()
    captured = capture(module, inputs(2).double())
    optimise(captured.graph)
    return module, captured


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_soft_gates_are_the_oracles(captured: tuple[Together, Captured], kind: type[nn.Module]) -> None:
    module, graph = captured
    x, alone = inputs(3).double(), built(kind).double()
    read, written = module.places(x)[kind.__name__]
    share = x[:, read].unflatten(1, kind.input_shape)
    v = torch.randn(alone(share).shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    output, expected = reference_pullback(alone, share, v, recipe=Recipe(), temperature=0.69)
    cotangent = torch.zeros(module(x).shape, dtype=x.dtype)
    cotangent[:, written] = v.flatten(1)
    found, pulled = PullbackModule(graph, Recipe())(x, cotangent, torch.tensor(0.69, dtype=x.dtype))
    assert expected.norm() > 1e-4  # random networks can vanish, and then nothing is proved
    assert relative_error(found[:, written], output.flatten(1)) < 1e-6  # instance norm computes in float32
    assert relative_error(pulled[:, read], expected.flatten(1)) < (1e-6 if kind is Normed else 1e-8)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_hard_gates_are_the_gradient(captured: tuple[Together, Captured], kind: type[nn.Module]) -> None:
    module, graph = captured
    leaf = inputs(3).double().requires_grad_()
    output = module(leaf)
    v = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(output, leaf, v)
    read, written = module.places(leaf)[kind.__name__]
    assert gradient[:, read].norm() > 1e-3
    found, pulled = PullbackModule(graph, Recipe(gate="hard"))(leaf.detach(), v)
    assert relative_error(found[:, written], output[:, written].detach()) < 1e-6  # instance norm computes in float32
    assert relative_error(pulled[:, read], gradient[:, read]) < (1e-6 if kind is Normed else 1e-8)
