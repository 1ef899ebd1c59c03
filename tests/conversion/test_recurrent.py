"""Recurrent networks whose gates are ReLUs: the graph's steps against the oracle's, and those against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.rewriting import explicit_graph, rewrite_program
from surgeon.verify.oracle.recurrent import relu_rnn
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]


class Rows(nn.Module):
    """[N, 2, 3] -> [N, 2]: all states of a recurrent network, and its last ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, nonlinearity="relu", **options)
        self.head = nn.Linear(4 * (1 + self.rnn.bidirectional), 2)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        states = states if self.rnn.batch_first else states.transpose(0, 1)
        return self.head(states.sum(1) + states[:, -1]) + last.sum((0, 2))[:, None]


class Cells(nn.Module):
    """[N, 2, 3] -> [N, 4]."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.cell = nn.RNNCell(3, 4, bias, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
        assert h is not None
        return h


def networks() -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [Rows(**options) for options in OPTIONS] + [Cells(True), Cells(False)]


def sequences(batch: int) -> Tensor:
    return torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights")  # torch.export's, of any nn.RNN
@pytest.mark.parametrize("place", range(len(OPTIONS) + 2))
def test_each_step_is_a_gate(place: int) -> None:
    module, x = networks()[place].double().eval(), sequences(3)
    g = torch.randn_like(module(x))
    for recipe in (Recipe(temperature_input="per-gate"), Recipe(gate="guided")):
        program, pullback = rewrite_program(module, sequences(2), recipe)
        assert len(pullback.gates) == (8 if place in (2, 3) else 2)
        temperatures = torch.linspace(0.3, 1.1, len(pullback.gates), dtype=x.dtype)
        pairs = zip(pullback.gates, temperatures.tolist(), strict=True)
        each = [(gate.module, value) for gate, value in pairs if gate.rule == "soft"]
        output, expected = reference_pullback(module, x, g, recipe=recipe, temperature=each or 1.0)
        found, pulled = explicit_graph(program)(x, g, *([temperatures] if each else []))
        assert torch.allclose(found, output) and torch.allclose(output, module(x))
        assert relative_error(pulled, expected) < 1e-12


@pytest.mark.parametrize("options", OPTIONS)
def test_the_oracles_steps_are_those_of_torch(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    rnn = nn.RNN(3, 4, nonlinearity="relu", **options).eval()
    hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), 5 if rnn.batch_first is False else 2, 4)
    x = torch.randn(2, 5, 3)
    given = (x, hx, rnn._flat_weights, rnn.bias, rnn.num_layers, 0.0, False, rnn.bidirectional, rnn.batch_first)
    for found, expected in zip(relu_rnn(torch.relu, *given), rnn(x, hx), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
