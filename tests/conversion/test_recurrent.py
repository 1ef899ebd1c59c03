"""Recurrent networks whose gates are ReLUs: the graph's steps against the oracle's, and those against torch."""

from __future__ import annotations

import collections
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


class Beside(nn.Module):
    """[N, 2, 3] -> [N, 16]: networks with all of OPTIONS, and cells with a bias and without."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([*(Rows(**options) for options in OPTIONS), Cells(True), Cells(False)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], 1)


def sequences(batch: int) -> Tensor:
    return torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.")  # torch.export's, of any nn.RNN
@pytest.mark.parametrize(
    "recipe", [Recipe(temperature_input="per-gate"), Recipe(gate="guided")], ids=["soft", "guided"]
)
def test_each_step_is_a_gate(recipe: Recipe) -> None:
    torch.manual_seed(0)
    module, x = Beside().double().eval(), sequences(3)
    program, pullback = rewrite_program(module, sequences(2), recipe)
    counts = collections.Counter(gate.module.split(".")[1] for gate in pullback.gates)
    assert counts == {"0": 2, "1": 2, "2": 8, "3": 8, "4": 2, "5": 2}
    temperatures = torch.linspace(0.3, 1.1, len(pullback.gates), dtype=x.dtype)
    pairs = zip(pullback.gates, temperatures.tolist(), strict=True)
    each = [(gate.module, value) for gate, value in pairs if gate.rule == "soft"]
    graph = explicit_graph(program)
    widths = [network(x).shape[1] for network in module.networks]
    for place, cotangent in enumerate(torch.eye(len(widths), dtype=x.dtype)):
        own = cotangent.repeat_interleave(torch.tensor(widths))
        g = torch.randn(len(x), len(own), generator=torch.Generator().manual_seed(place), dtype=x.dtype) * own
        output, expected = reference_pullback(module, x, g, recipe=recipe, temperature=each or 1.0)
        found, pulled = graph(x, g, *([temperatures] if each else []))
        assert torch.allclose(found, output) and torch.allclose(output, module(x))
        assert relative_error(pulled, expected) < 1e-12 and expected.any()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_oracles_steps_are_those_of_torch(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    rnn = nn.RNN(3, 4, nonlinearity="relu", **options).eval()
    hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), 5 if rnn.batch_first is False else 2, 4)
    x = torch.randn(2, 5, 3)
    given = (x, hx, rnn._flat_weights, rnn.bias, rnn.num_layers, 0.0, False, rnn.bidirectional, rnn.batch_first)
    for found, expected in zip(relu_rnn(torch.relu, *given), rnn(x, hx), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
