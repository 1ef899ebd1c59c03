"""The network of `tests.tiny_bundle`, in torch."""

from __future__ import annotations

import torch
from torch import nn

from tests.tiny_bundle import CHANNELS, CLASSES, HIDDEN, SIDE, Tiny


def tiny() -> nn.Module:
    """With the same weights."""
    weights = Tiny()
    first, second = nn.Linear(CHANNELS * SIDE * SIDE, HIDDEN, bias=False), nn.Linear(HIDDEN, CLASSES, bias=False)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    network.load_state_dict({"1.weight": torch.tensor(weights.first.T), "3.weight": torch.tensor(weights.second.T)})
    network.input_shape = (CHANNELS, SIDE, SIDE)
    return network.eval()
