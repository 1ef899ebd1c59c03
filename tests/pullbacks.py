"""Pullbacks run from the captured graph: for tests of what a network means, not of how its pullback is recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import CapturedNetwork, capture_network

SOFT, HARD = Recipe(), Recipe(gate="hard")


def captured(module: nn.Module, x: Tensor, recipe: Recipe = SOFT) -> CapturedNetwork:
    """`module` in float64, captured with two samples of zeros, shaped as those of `x`."""
    return capture_network(module.double(), x.new_zeros(2, *x.shape[1:]), recipe)


def pullback(network: nn.Module | CapturedNetwork, x: Tensor, v: Tensor, recipe: Recipe) -> Tensor:
    """Of `network` in float64, at temperature 0.3 where gates are soft, through capture and rules."""
    found = network if isinstance(network, CapturedNetwork) else captured(network, x, recipe)
    sweep = PullbackModule(found.captured, recipe)
    with torch.no_grad():
        return sweep(x, v, torch.tensor(0.3, dtype=torch.float64))[1] if sweep.uses_temperature else sweep(x, v)[1]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers, float64, the same ones for every `seed`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
