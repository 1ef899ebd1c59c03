"""Zeros around max pooling: ONNX Runtime would make them minus infinity, where the pooled values are negative."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import surgeon
from surgeon.conversion.writers import pullback_graph
from surgeon.errors import VerificationError


def network() -> nn.Sequential:
    """As in BiT: no activation between the padding and the pool, and most values below zero."""
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.bias, -1.0)
    return nn.Sequential(conv, nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()).eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("pool", ["soft", "hard"])
def test_zeros_stay_zeros(tmp_path: Path, pool: str, precision: str) -> None:
    recipe = surgeon.Recipe(pool=pool, precision=precision)
    surgeon.export(network(), tmp_path / "bundle", recipe, formats=("onnx",), input_shape=(3, 12, 12))  # verifies


def test_onnx_runtime_still_needs_to_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, `surgeon.conversion.writers.padding` can go."""
    monkeypatch.setattr(pullback_graph, "keep_zero_padding", lambda graph: None)
    with pytest.raises(VerificationError):
        surgeon.export(network(), tmp_path / "bundle", surgeon.Recipe(), input_shape=(3, 12, 12))
