"""Small networks on which nothing passes trivially: random batch norm statistics, no head of zeros."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stem(nn.Module):
    """ReLU in place after batch norm, then overlapping max pooling with padding, as ResNets begin."""

    input_shape = (3, 15, 13)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.norm(self.conv(x)))).mean((2, 3)))


class Functional(nn.Module):
    """Functional ReLUs, one of them in place on a tensor that is read again, and a residual sum."""

    input_shape = (3, 8, 9)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.module = nn.ReLU()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        F.relu(x, inplace=True)
        y = self.module(self.second(x))
        return self.head(torch.relu(x + y - 0.3).mean((2, 3)))


class CeilPool(nn.Module):
    """Max pooling in ceil mode, dilated, and by function on negative values; concatenation."""

    input_shape = (3, 14, 14)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.ceil = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.padded = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.dilated = nn.MaxPool2d(2, 1, dilation=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        pools = (self.ceil(x), self.padded(x), self.dilated(x), F.max_pool2d(x, (2, 3), stride=(1, 2)))
        return self.head(torch.cat([pool.mean((2, 3)) for pool in pools], 1))


class Clamps(nn.Module):
    """ReLU6, hardtanh and clamps with one edge or two, after a depthwise convolution."""

    input_shape = (4, 7, 7)

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.relu6 = nn.ReLU6()
        self.hardtanh = nn.Hardtanh(-0.5, 0.7)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = 8 * self.depthwise(x)
        y = self.relu6(x) + self.hardtanh(x / 4) + F.relu6(x - 1)
        return self.head((y + x.clamp(min=-0.2) + torch.clamp(x, max=0.4) + x.clip(-1, 2)).mean((2, 3)))


class Slopes(nn.Module):
    """LeakyReLU, PReLU with one slope and with one per channel."""

    input_shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.leaky = nn.LeakyReLU(0.2)
        self.one = nn.PReLU(init=0.3)
        self.each = nn.PReLU(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((self.leaky(x) + self.one(x - 0.1) + self.each(x + 0.1)).mean((2, 3)))


class Line(nn.Module):
    """One dimension, and pooling there."""

    input_shape = (2, 17)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool1d(F.relu(self.conv(x)), 3, 2, 1).mean(2))


class Volume(nn.Module):
    """Three dimensions, and pooling there."""

    input_shape = (1, 6, 7, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2)
        self.pool = nn.MaxPool3d(2, 1, 1)
        self.head = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.conv(x))).mean((2, 3, 4)))


class Blocks(nn.Module):
    """Whole blocks of channels; a residual sum beside a strided convolution, and a clamped depthwise one."""

    input_shape = (3, 17, 17)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.main = nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1))
        self.side = nn.Conv2d(32, 32, 1, stride=2)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU6())
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.main(x) + self.side(x)
        return self.head((x + self.last(x)).mean((2, 3)))


def blocks() -> nn.Module:
    """`Blocks` as it is drawn, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blocks().eval()


def stem() -> nn.Module:
    """`Stem` in float32."""
    return build(Stem).float()


def functional() -> nn.Module:
    """`Functional` in float32."""
    return build(Functional).float()


class Deep(nn.Module):
    """In-place and functional ReLUs, one of them called twice, a submodule without name of its own, two outputs."""

    input_shape = (3, 9, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(4, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.top = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 7)
        self.unused = nn.Linear(5, 7)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(self.stem(x)) - 0.1)
        return self.relu(self.top(self.relu(x - 0.2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.features(x), 2).mean((2, 3)))


class Several(Deep):
    """Returns what no pullback can start at."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": super().forward(x), "features": self.features(x)}


NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (Stem, Functional, CeilPool, Clamps, Slopes, Line, Volume)
}


class Apply(nn.Module):
    """A function of the input and some layers."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


class Side(nn.Module):
    """Functions of one input side by side: [N, …] -> [N, their elements]."""

    def __init__(self, functions: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([function(x).flatten(1) for function in self.functions], 1)


class Together(nn.Module):
    """Networks side by side, each on its share of a flat input: [N, their inputs' elements] -> [N, their outputs'].

    One export answers for all of them: no share of the pullback depends on another network.
    """

    def __init__(self, networks: Mapping[str, nn.Module], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.shapes = tuple(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.input_shape = (sum(self.sizes),)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.outputs(x), 1)

    def outputs(self, x: Tensor) -> list[Tensor]:
        shares = zip(self.networks.values(), x.split(self.sizes, 1), self.shapes, strict=True)
        return [network(share.unflatten(1, shape)).flatten(1) for network, share, shape in shares]

    def places(self, x: Tensor) -> dict[str, tuple[slice, slice]]:
        """By name, where a network's elements are in the input, and where in the output, for an input `x`."""
        with torch.no_grad():
            widths = [output.shape[1] for output in self.outputs(x)]
        ends = [list(itertools.accumulate(sizes, initial=0)) for sizes in (self.sizes, widths)]
        inputs, outputs = ([slice(*pair) for pair in itertools.pairwise(places)] for places in ends)
        return dict(zip(self.networks, zip(inputs, outputs, strict=True), strict=True))


def random_norm(kind: type[nn.modules.batchnorm._BatchNorm], channels: int, affine: bool = True) -> nn.Module:
    norm = kind(channels, affine=affine)
    generator = torch.Generator().manual_seed(channels)
    for value in (norm.running_mean, norm.running_var, *norm.parameters()):
        value.data = torch.rand(channels, generator=generator) + 0.4
    return norm


def build(network: type[nn.Module], seed: int = 0) -> nn.Module:
    """`network` in eval mode and float64, its statistics, affine maps and slopes random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network().double().eval().requires_grad_(False)
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
            if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
                layer.weight.uniform_(-0.2, 0.6)
    return module


def example(network: type[nn.Module], batch: int = 3, seed: int = 1) -> Tensor:
    """A random input [batch, …] for `network`, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *network.input_shape), generator=generator, dtype=torch.float64)


def deep() -> nn.Module:
    return build(Deep).float()


def several() -> nn.Module:
    return build(Several).float()
