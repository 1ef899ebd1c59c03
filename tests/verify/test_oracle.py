"""The oracle against finite differences, Zennit, loops written by hand, and mistakes planted on purpose."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.errors import SurgeonError
from surgeon.verify.oracle import formulas
from surgeon.verify.oracle.activations import Activation
from surgeon.verify.oracle.formulas import soft_pool, soft_pool_vjp
from surgeon.verify.oracle.reference import reference_ascent, reference_pullback, reference_step
from tests.networks import NETWORKS, build, example

HARD = Recipe(gate="hard", pool="hard")
T = 0.4


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def cotangent_for(module: nn.Module, x: Tensor) -> Tensor:
    return torch.randn(module(x).shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def pull(function, z: Tensor, g: Tensor, **recipe: str) -> Tensor:
    return reference_pullback(Apply(function).eval(), z, g, recipe=Recipe(**recipe), temperature=T)[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_hard_gates_agree_with_finite_differences(name: str) -> None:
    module, x = build(NETWORKS[name]), example(NETWORKS[name])
    v = cotangent_for(module, x)
    output, pullback = reference_pullback(module, x, v, recipe=HARD, temperature=T)
    direction = torch.randn_like(x)
    slope = ((module(x + 1e-7 * direction) - module(x - 1e-7 * direction)) * v).sum() / 2e-7
    assert torch.equal(output, module(x))
    assert (pullback * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)


# With the lower edge alone softened, a clamp's upper one lets everything pass.
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "Clamps"])
def test_a_vanishing_temperature_gives_the_gradient(name: str) -> None:
    module, x = build(NETWORKS[name]), example(NETWORKS[name])
    # Padding takes part with the value 0, which a maximum below 0 does not know of.
    if name == "CeilPool":
        module.conv.bias += 3
    v = cotangent_for(module, x)
    _, soft = reference_pullback(module, x, v, recipe=Recipe(), temperature=1e-9)
    _, hard = reference_pullback(module, x, v, recipe=HARD, temperature=1.0)
    assert relative(soft, hard) < 1e-9


def test_both_edges_of_a_clamp_soften_to_the_gradient() -> None:
    module, x = build(NETWORKS["Clamps"]), example(NETWORKS["Clamps"])
    v = cotangent_for(module, x)
    _, soft = reference_pullback(module, x, v, recipe=Recipe(edges="both"), temperature=1e-9)
    _, hard = reference_pullback(module, x, v, recipe=HARD, temperature=1.0)
    assert relative(soft, hard) < 1e-9


Z = torch.tensor([-8.0, -0.7, -0.1, 0.2, 0.9, 5.5, 6.4], dtype=torch.float64)
G = torch.tensor([1.0, -2.0, 3.0, 0.5, -1.5, 2.0, 1.2], dtype=torch.float64)
OPEN = torch.sigmoid(Z / T)
RELUS = [
    F.relu,
    torch.relu,
    Tensor.relu,
    nn.ReLU(),
    nn.ReLU(inplace=True),
    F.relu_,
    lambda x: F.relu(x, inplace=True),
    lambda x: torch.relu(input=x),
    lambda x: x.clone().relu_(),
    torch.ops.aten.relu.default,
    lambda x: x.clamp(min=0),
    lambda x: torch.clamp_min(x, 0.0),
]


@pytest.mark.parametrize("relu", RELUS)
def test_every_way_to_write_relu(relu) -> None:
    assert torch.allclose(pull(relu, Z, G), OPEN * G, rtol=1e-14)
    assert torch.allclose(pull(relu, Z, G, gate="guided"), G * (Z > 0) * (G > 0), rtol=1e-14)
    assert torch.allclose(pull(relu, Z, G, gate="deconvnet"), G * (G > 0), rtol=1e-14)
    assert torch.equal(pull(relu, Z, G, gate="hard"), G * (Z > 0))


CLAMPS = [
    (F.relu6, 0.0, 6.0),
    (nn.ReLU6(inplace=True), 0.0, 6.0),
    (nn.Hardtanh(-0.5, 0.7), -0.5, 0.7),
    (F.hardtanh_, -1.0, 1.0),
    (lambda x: x.clamp(-0.3, 1.0), -0.3, 1.0),
    (lambda x: torch.clip(x, max=1.0), None, 1.0),
]


@pytest.mark.parametrize(("clamp", "low", "high"), CLAMPS)
def test_clamps(clamp, low: float | None, high: float) -> None:
    lower = torch.sigmoid((Z - low) / T) if low is not None else 1.0
    upper = torch.sigmoid((high - Z) / T)
    inside = (high > Z) if low is None else torch.logical_and(low < Z, high > Z)
    assert torch.allclose(pull(clamp, Z, G), (upper if low is None else lower) * G, rtol=1e-14)
    assert torch.allclose(pull(clamp, Z, G, edges="both"), lower * upper * G, rtol=1e-14)
    assert torch.allclose(pull(clamp, Z, G, gate="guided"), G * inside * (G > 0), rtol=1e-14)


@pytest.mark.parametrize("leaky", [nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, inplace=True), nn.PReLU(init=0.2).double()])
def test_slopes(leaky) -> None:
    z, g = Z[None], G[None]
    slope = 0.2 if not isinstance(leaky, nn.PReLU) else leaky.weight.item()
    assert torch.allclose(pull(leaky, z, g), slope * g + (1 - slope) * OPEN * g, rtol=1e-14)
    guided = torch.where(g > 0, torch.where(z > 0, g, slope * g), slope * g)
    assert torch.allclose(pull(leaky, z, g, gate="guided"), guided, rtol=1e-14)


def test_a_tensor_overwritten_by_relu_is_seen_so_by_its_other_readers() -> None:
    def forward(x: Tensor) -> Tensor:
        z = x * 1
        F.relu(z, inplace=True)
        return z * z

    output, pullback = reference_pullback(Apply(forward).eval(), Z, G, recipe=Recipe(), temperature=T)
    relu = Z.clamp(min=0)
    assert torch.equal(output, relu**2)
    assert torch.allclose(pullback, OPEN * 2 * relu * G, rtol=1e-14)


def test_guided_and_deconvnet_agree_with_zennit() -> None:
    composites = pytest.importorskip("zennit.composites")
    module, x = build(NETWORKS["Stem"]), example(NETWORKS["Stem"])
    v = cotangent_for(module, x)
    for gate, composite in (("guided", composites.GuidedBackprop()), ("deconvnet", composites.DeconvNet())):
        with composite.context(module) as hooked:
            leaf = x.clone().requires_grad_(True)
            (expected,) = torch.autograd.grad(hooked(leaf), leaf, v)
        _, found = reference_pullback(module, x, v, recipe=Recipe(gate=gate, pool="hard"), temperature=T)
        assert relative(found, expected) < 1e-12


def looped_pool(x: Tensor, g: Tensor, k: int, s: int, p: int, d: int) -> Tensor:
    """The pullback of one channel [H, W], window by window, number by number."""
    height, width = x.shape
    result = torch.zeros_like(x)
    for o, q in itertools.product(range(g.shape[0]), range(g.shape[1])):
        places = [(o * s + i * d - p, q * s + j * d - p) for i in range(k) for j in range(k)]
        places = [(i, j) for i, j in places if i < height + p and j < width + p]
        inside = [0 <= i < height and 0 <= j < width for i, j in places]
        values = [x[place].item() if ok else 0.0 for place, ok in zip(places, inside, strict=True)]
        total = sum(math.exp(value / T) for value in values)
        weights = [math.exp(value / T) / total for value in values]
        pooled = sum(weight * value for weight, value in zip(weights, values, strict=True))
        for place, ok, weight, value in zip(places, inside, weights, values, strict=True):
            if ok:
                result[place] += weight * (1 + (value - pooled) / T) * g[o, q]
    return result


POOLS = [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (3, 3, 1, 1), (2, 1, 0, 2), (3, 2, 1, 2), (2, 3, 1, 3)]


@pytest.mark.parametrize(("k", "s", "p", "d"), POOLS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [8, 9])
def test_soft_pools_agree_with_loops(k: int, s: int, p: int, d: int, ceil_mode: bool, size: int) -> None:
    x = torch.randn(1, 1, size, size + 1, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    v = torch.randn_like(F.max_pool2d(x, k, s, p, d, ceil_mode))
    found = pull(lambda x: F.max_pool2d(x, k, s, p, d, ceil_mode), x, v)
    assert relative(found[0, 0], looped_pool(x[0, 0], v[0, 0], k, s, p, d)) < 1e-12


def test_every_way_to_write_max_pool() -> None:
    x, v = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    expected = soft_pool_vjp(x, v, (2, 2), (2, 2), (0, 0), (1, 1), T)
    for pool in (
        lambda x: F.max_pool2d(x, 2),
        nn.MaxPool2d(2),
        lambda x: nn.MaxPool2d(2, return_indices=True)(x)[0],
        lambda x: torch.max_pool2d(x, 2),
        lambda x: torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[0],
        lambda x: F.max_pool3d(x, (1, 2, 2)),
    ):
        assert relative(pull(pool, x, v), expected) < 1e-12
    assert relative(pull(lambda x: F.max_pool1d(x[0], 2), x[:, 0], v[0, 0].repeat(6, 1)[:6]), x[:, 0]) > 0


def test_a_warm_pool_is_an_average() -> None:
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    pooled = soft_pool(x, (2, 2), (2, 2), (2, 2), (0, 0), (1, 1), 1e9)
    assert torch.allclose(pooled, F.avg_pool2d(x, 2), rtol=1e-6)


def test_scope_modules_leaves_functions_hard() -> None:
    module, x = build(NETWORKS["Functional"]), example(NETWORKS["Functional"])
    v = cotangent_for(module, x)
    found = {
        scope: reference_pullback(module, x, v, recipe=Recipe(gate_scope=scope), temperature=T)[1]
        for scope in ("all", "modules")
    }
    assert relative(found["modules"], found["all"]) > 0.05
    assert torch.equal(pull(F.relu, Z, G, gate_scope="modules"), G * (Z > 0))
    assert torch.equal(pull(nn.ReLU(), Z, G, gate_scope="modules"), G * (Z > 0) * 0 + OPEN * G)


def test_at_a_layer() -> None:
    module, x = build(NETWORKS["Stem"]), example(NETWORKS["Stem"])
    output, _ = reference_pullback(module, x, torch.ones(1, dtype=x.dtype), recipe=Recipe(at=("norm",)), temperature=T)
    assert torch.equal(output, module.norm(module.conv(x)))
    with pytest.raises(SurgeonError, match="no layer 'nrom'"):
        reference_pullback(module, x, torch.ones(1), recipe=Recipe(at=("nrom",)), temperature=T)


@pytest.mark.parametrize("fault", ["gate", "pool", "clamp"])
def test_a_planted_mistake_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops, Zennit and formulas above would mean nothing if the oracle's own rules were not what is measured."""

    def plain_gate(activation: Activation, z: Tensor, g: Tensor, temperature: float, both: bool) -> Tensor:
        return torch.sigmoid(z / temperature) * (z > 0) * g

    if fault == "pool":
        monkeypatch.setattr(formulas, "soft_pool_vjp", lambda x, g, *options: torch.zeros_like(x))
    elif fault == "gate":
        monkeypatch.setitem(formulas.FORMULAS, "soft", plain_gate)
    else:
        monkeypatch.setitem(formulas.FORMULAS, "guided", lambda activation, z, g, *options: g * (g > 0))
    test = {
        "gate": lambda: test_every_way_to_write_relu(F.relu),
        "pool": lambda: test_soft_pools_agree_with_loops(3, 2, 1, 1, False, 8),
        "clamp": lambda: test_clamps(F.relu6, 0.0, 6.0),
    }
    with pytest.raises(AssertionError):
        test[fault]()


QUADRATIC = {"recipe": Recipe(objective="energy"), "temperature": T}


def test_an_ascent_on_a_linear_map_is_what_algebra_says() -> None:
    """Energy of the identity is |x|²/2 with pullback x, so each step adds α in x's own direction."""
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    identity = nn.Identity().eval()
    perturbed, output, pullback, score = reference_ascent(
        identity, x, None, range=None, step_size=1.0, radius=1.5, steps=2, **QUADRATIC
    )
    directions = x / x.norm(dim=1, keepdim=True)
    assert torch.allclose(perturbed, x + 1.5 * directions)  # the second step reached 2 and was projected
    assert torch.equal(output, perturbed)
    assert torch.allclose(pullback, x + directions)
    assert torch.allclose(score, 0.5 * torch.stack([x, x + directions, perturbed]).square().sum(2))
    clamped, *_ = reference_ascent(
        identity, x, None, range=(-4.0, 4.0), margin=0.25, step_size=1.0, radius=math.inf, steps=1, **QUADRATIC
    )
    assert clamped[0, 1] == 4.25


def test_an_ascent_of_a_network_that_overwrites_its_input() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    shared: dict[str, Any] = {"range": None, "step_size": 1.0, "radius": 1.5, "steps": 2, **QUADRATIC}
    ascents = [
        reference_ascent(nn.Sequential(nn.ReLU(inplace)).eval(), x.clone() - 1, None, **shared)
        for inplace in (True, False)
    ]
    for found, expected in zip(*ascents, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("norm", "length"), [("1", 7.0), ("2", 5.0), ("inf", 4.0)])
def test_steps_and_norms(norm: str, length: float) -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    added = {}
    for step in ("unit", "relative", "raw"):
        recipe = Recipe(objective="energy", step=step, norm=norm)
        moved, *_ = reference_step(
            nn.Identity().eval(), x, x, None, recipe=recipe, range=None, temperature=T, step_size=0.5, radius=math.inf
        )
        added[step] = moved - x
    assert torch.allclose(added["unit"], 0.5 * x / length)
    assert torch.allclose(added["relative"], 0.5 * x)
    assert torch.allclose(added["raw"], 0.5 * x)


def test_the_objectives_rise_and_a_negative_step_descends() -> None:
    module, x = build(NETWORKS["Stem"]), example(NETWORKS["Stem"])
    target = torch.eye(5, dtype=x.dtype)[:3]
    for objective in ("logit", "cross-entropy", "energy"):
        for sign in (1, -1):
            *_, score = reference_ascent(
                module, x, target, recipe=Recipe(objective=objective), range=None, temperature=0.1,
                step_size=0.05 * sign, radius=math.inf, steps=3,
            )  # fmt: skip
            assert score.shape == (4, 3)
            assert ((score[-1] - score[0]) * sign > 0).all()


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(SurgeonError, match="training mode"):
        reference_pullback(nn.ReLU(), Z, G, recipe=Recipe(), temperature=T)
    with pytest.raises(SurgeonError, match="tuple"):
        pull(lambda x: (x, x), Z, G)
    with pytest.raises(SurgeonError, match="gate cannot be 'sotf'"):
        pull(F.relu, Z, G, gate="sotf")
