"""Layers of a network are listed from one forward pass, as a recording would list them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surgeon.analysis.inspect import model_summary
from surgeon.analysis.inspect.model_summary import ModelSummary

ROWS, IMAGES = torch.zeros(2, 3, 8), torch.zeros(2, 3, 8, 8)
NETWORKS = {
    "every gate": (
        nn.Sequential(
            *(nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU()),
            *(nn.PReLU(), nn.Threshold(0.1, 0.0), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 2)),
        ),
        ROWS,
    ),
    "no gate": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2)), IMAGES),
    "pools": (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 1))), IMAGES),
    "a film": (nn.Sequential(nn.Conv3d(3, 2, 1), nn.ReLU(), nn.MaxPool3d(2)), torch.zeros(2, 3, 4, 4, 4)),
}


class Shared(nn.Module):
    """One ReLU that is called twice, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(self.relu(x)) + x)


class Functional(nn.Module):
    """A gate that is a function, beside one that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x).sub(1).clamp(min=0)


@pytest.mark.parametrize("name", [*NETWORKS, "shared"])
def test_gates_are_counted_without_a_recording(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, example = NETWORKS[name] if name in NETWORKS else (Shared(), IMAGES)
    recorded = ModelSummary(module.eval(), example)
    recorded._run.gates = None  # so that the recording is what counts
    expected = (recorded.layers, recorded.gate_kinds)
    monkeypatch.setattr(model_summary, "capture", None)
    monkeypatch.setattr(model_summary, "record", None)
    summary = ModelSummary(module, example)
    assert (summary.layers, summary.gate_kinds) == expected
    assert sum(layer.gates for layer in summary.layers if layer.kind in ("ReLU", "MaxPool2d")) > 0 or "gate" in name


def test_gates_that_are_functions_have_the_names_of_a_recording() -> None:
    summary = ModelSummary(Functional().eval(), IMAGES)
    assert summary._run.gates is None
    assert [(layer.name, layer.kind) for layer in summary.layers] == [
        ("relu", "ReLU"),
        ("clamp", "aten.clamp.default"),
    ] and summary.gate_kinds == ("gate", "gate")


def test_a_network_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = []

    def count(module: nn.Module, example: object) -> object:
        captures.append(module)
        return capture(module, example)

    capture = model_summary.capture
    monkeypatch.setattr(model_summary, "capture", count)
    summary = ModelSummary(Functional().eval(), IMAGES)
    assert summary.layers and summary.nodes and summary.captured is not None and len(captures) == 1
