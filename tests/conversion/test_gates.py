"""Gate policies at single activations: limits, edges, and which activations a recipe reaches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import capture
from surgeon.conversion.gates import GATES, BoundGate, gate
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rules import RULES
from surgeon.errors import SurgeonError

aten = torch.ops.aten
Z = torch.linspace(-2.03, 2.11, 24, dtype=torch.float64).reshape(2, 3, 4)
G = torch.randn(Z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ACTIVATIONS: list[tuple[object, tuple[object, ...]]] = [
    (aten.relu.default, ()),
    (aten.hardtanh.default, (-1.0, 1.0)),
    (aten.hardtanh.default, (0.0, 1.5)),
    (aten.clamp.default, (-0.5, None)),
    (aten.clamp.default, (None, 0.5)),
    (aten.clamp.default, (-0.5, 0.5)),
    (aten.leaky_relu.default, (0.2,)),
    (aten.prelu.default, (torch.tensor([0.1, -0.2, 0.6], dtype=torch.float64),)),
]


def pull(
    operator: object,
    options: tuple[object, ...],
    policy: str,
    temperature: float = 1.0,
    edges: str = "lower",
    z: Tensor = Z,
    g: Tensor = G,
) -> Tensor:
    gate = BoundGate(GATES[policy], torch.tensor(1 / temperature, dtype=torch.float64), edges)
    return RULES[operator].backward(g, None, z, *options, gate=gate)[0]


def gradient(operator: Callable[..., Tensor], options: tuple[object, ...]) -> Tensor:
    z = Z.clone().requires_grad_(True)
    return torch.autograd.grad(operator(z, *options), z, G)[0]


@pytest.mark.parametrize(("operator", "options"), ACTIVATIONS)
def test_a_vanishing_temperature_gives_the_gradient(operator, options) -> None:
    soft = pull(operator, options, "soft", 1e-6, "both")
    assert (soft - gradient(operator, options)).abs().max() < 1e-12


def test_an_infinite_temperature_halves_each_edge() -> None:
    halves = {
        (aten.relu.default, ()): 0.5,
        (aten.hardtanh.default, (-1.0, 1.0)): 0.5,
        (aten.clamp.default, (None, 0.5)): 0.5,
        (aten.leaky_relu.default, (0.2,)): 0.2 + 0.8 / 2,
    }
    for (operator, options), factor in halves.items():
        assert (pull(operator, options, "soft", math.inf) - factor * G).abs().max() < 1e-15
    assert (pull(aten.hardtanh.default, (), "soft", math.inf, "both") - G / 4).abs().max() < 1e-15


def test_a_soft_relu_lets_a_little_pass_below_zero() -> None:
    passed = pull(aten.relu.default, (), "soft", 0.5) / G
    assert (passed > 0).all()
    assert (passed < 1).all()
    assert (passed[Z < 0] < 0.5).all()
    assert (passed[Z > 0] > 0.5).all()


def test_edges_are_where_autograd_has_them() -> None:
    for operator, options in ((aten.relu.default, ()), (aten.hardtanh.default, (0.0, 6.0))):
        z = torch.tensor([0.0, 6.0, 7.0, -1.0, 3.0], dtype=torch.float64).requires_grad_(True)
        g = torch.ones_like(z)
        (expected,) = torch.autograd.grad(operator(z, *options), z, g)
        for policy in ("hard", "guided"):
            assert torch.equal(pull(operator, options, policy, z=z.detach(), g=g), expected), (operator, policy)
            # A clamp's edges are shut too. (Autograd's were open before torch 2.14.)
            as_clamp = pull(aten.clamp.default, options or (0.0,), policy, z=z.detach(), g=g)
            assert torch.equal(as_clamp, expected), (operator, policy)


def test_guided_is_hard_on_positive_cotangents_and_deconvnet_ignores_the_activation() -> None:
    positive = G.clamp(min=0)
    for operator, options in ACTIVATIONS[:6]:
        assert torch.equal(pull(operator, options, "guided"), pull(operator, options, "hard", g=positive))
        assert torch.equal(pull(operator, options, "deconvnet"), positive)


def test_nothing_but_soft_reads_the_temperature() -> None:
    for name, policy in GATES.items():
        same = torch.equal(pull(aten.relu.default, (), name, 0.1), pull(aten.relu.default, (), name, 3.0))
        assert same is not policy.uses_temperature


@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_soft_gates_of_float32_stay_finite(temperature: float) -> None:
    z = torch.tensor([-1e30, -1e4, -50.0, 0.0, 50.0, 1e4, 1e30])
    gate = BoundGate(GATES["soft"], torch.tensor(1 / temperature), "both")
    for operator, options in ACTIVATIONS[:6]:
        (found,) = RULES[operator].backward(torch.ones(7), None, z, *options, gate=gate)
        assert found.isfinite().all()
        assert ((found >= 0) & (found <= 1)).all()


def test_an_unknown_gate_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SurgeonError, match=r"no gate 'sofft'. Gates are soft, hard, guided, deconvnet"):
        gate("sofft")


class LikeDenseNet(nn.Module):
    """A ReLU module, a functional one, a pooling module and a functional pool."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pool(self.act(x * 2)) - 0.5, inplace=True)
        return F.max_pool2d(x, 2).flatten(1)


@pytest.mark.parametrize(
    ("recipe", "rules"),
    [
        (Recipe(), ["soft", "soft", "soft", "soft"]),
        (Recipe(gate_scope="modules"), ["soft", "soft", "hard", "hard"]),
        (Recipe(pool="hard"), ["soft", "hard", "soft", "hard"]),
        (Recipe(gate="guided", pool="soft", gate_scope="modules"), ["guided", "soft", "hard", "hard"]),
    ],
)
def test_scope_and_pool_decide_node_by_node(recipe: Recipe, rules: list[str]) -> None:
    pullback = PullbackModule(capture(LikeDenseNet(), torch.zeros(2, 1, 8, 8)), recipe)
    assert [site.rule for site in pullback.gates] == rules
    assert [site.kind for site in pullback.gates] == ["gate", "pool", "gate", "pool"]
    assert [site.module for site in pullback.gates] == ["act", "pool", "", ""]
    assert [site.shape for site in pullback.gates] == [("N", 1, 8, 8), ("N", 1, 8, 8), ("N", 1, 4, 4), ("N", 1, 4, 4)]
    assert pullback.uses_temperature is ("soft" in rules)
