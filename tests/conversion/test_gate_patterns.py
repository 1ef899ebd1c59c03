"""Patterns that are equivalent to gates: the graph and the oracle recognise each, and each is the slow rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.analysis.inspect.convertibility import check
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.passes import optimise as passes
from surgeon.conversion.passes.optimise import optimise
from surgeon.conversion.pullback import PullbackModule
from surgeon.errors import VerificationError
from surgeon.verify.oracle.reference import reference_pullback
from tests import oracles

aten = torch.ops.aten
relu, leaky, clamp, threshold = (
    aten.relu.default,
    aten.leaky_relu.default,
    aten.clamp.default,
    aten.threshold.default,
)
T = 0.7
EDGES = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)
SLOPES = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)


def times_itself(x: Tensor) -> Tensor:
    y = x * 1
    y *= y > 0
    return y


def relu_in_place_then_clamped(x: Tensor) -> Tensor:
    y = x * 1
    F.relu_(y)
    return y.clamp(max=0.6)


def set_to_zero_then_smaller(x: Tensor) -> Tensor:
    return torch.minimum(set_to_zero(x), torch.full_like(x, 0.6))


def set_to_zero(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0
    return y


Form = tuple[Callable[[Tensor], Tensor], Any, tuple[Any, ...]]
FORMS: dict[str, Form] = {
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), relu, ()),
    "maximum, turned": (lambda x: torch.maximum(x.new_zeros(()), x), relu, ()),
    "max": (lambda x: torch.max(x, torch.tensor(0.0, dtype=x.dtype)), relu, ()),
    "max, method": (lambda x: x.max(torch.zeros(4).to(x)), relu, ()),
    "fmax": (lambda x: torch.fmax(x, torch.zeros_like(x)), relu, ()),
    "maximum, detached": (lambda x: torch.maximum(x, 0 * x.detach().mean() + EDGES.to(x)), aten.clamp.Tensor, (EDGES,)),
    "maximum, edges": (lambda x: torch.maximum(x, EDGES.to(x)), aten.clamp.Tensor, (EDGES,)),
    "minimum": (lambda x: torch.min(x, torch.full_like(x, 0.4)), clamp, (None, 0.4)),
    "both": (
        lambda x: torch.minimum(torch.maximum(x, torch.zeros_like(x)), torch.full_like(x, 0.6)),
        *(clamp, (0.0, 0.6)),
    ),
    "both, turned": (
        lambda x: torch.maximum(torch.minimum(x, torch.full_like(x, 0.6)), torch.full_like(x, -0.5)),
        *(clamp, (-0.5, 0.6)),
    ),
    "minimum of a ReLU": (lambda x: torch.minimum(F.relu(x), torch.full_like(x, 0.6)), clamp, (0.0, 0.6)),
    "clamped ReLU": (lambda x: F.relu(x).clamp(max=0.6), clamp, (0.0, 0.6)),
    "clamped ReLU, both edges": (lambda x: F.relu(x).clamp(0, 0.6), clamp, (0.0, 0.6)),
    "ReLU of a clamp": (lambda x: x.clamp(max=0.6).relu(), clamp, (0.0, 0.6)),
    "clamped twice": (lambda x: x.clamp(min=-0.1).clamp(max=0.6), clamp, (-0.1, 0.6)),
    "clamped twice, the lower edge twice": (lambda x: x.clamp(min=-0.1).clamp(-0.5, 0.6), clamp, (-0.1, 0.6)),
    "ReLU in place, clamped": (relu_in_place_then_clamped, clamp, (0.0, 0.6)),
    "set to zero, clamped": (set_to_zero_then_smaller, clamp, (0.0, 0.6)),
    "mask of what is computed again": (lambda x: (x * 2 / 2) * ((x * 2 / 2) > 0), relu, ()),
    "where, computed again": (lambda x: torch.where(x + 0.0 > 0, x + 0.0, 0.1 * (x + 0.0)), leaky, (0.1,)),
    "where": (lambda x: torch.where(x > 0, x, 0), relu, ()),
    "where, not strict": (lambda x: torch.where(x >= 0, x, torch.zeros_like(x)), relu, ()),
    "where, turned": (lambda x: torch.where(x < 0, 0.0, x), relu, ()),
    "where, compared with zeros": (lambda x: torch.where(torch.zeros_like(x) < x, x, 0.0), relu, ()),
    "where, edge": (lambda x: torch.where(x > 0.3, x, 0.3), clamp, (0.3,)),
    "where, below": (lambda x: torch.where(x < 0.3, x, 0.3), clamp, (None, 0.3)),
    "where, step": (lambda x: torch.where(x > 0.3, x, -1.0), threshold, (0.3, -1.0)),
    "where, slope": (lambda x: torch.where(x > 0, x, 0.1 * x), leaky, (0.1,)),
    "where, slope, turned": (lambda x: torch.where(x <= 0, x / 10, x), leaky, (0.1,)),
    "where, slopes": (
        lambda x: torch.where(x > 0, x, SLOPES.to(x).reshape(3, 1) * x),
        *(aten.prelu.default, (SLOPES,)),
    ),
    "maximum, slope": (lambda x: torch.max(x, 0.2 * x), leaky, (0.2,)),
    "maximum, slopes": (
        lambda x: torch.maximum(x, SLOPES.abs().to(x).reshape(3, 1) * x),
        *(aten.prelu.default, (SLOPES.abs(),)),
    ),
    "masked fill": (lambda x: x.masked_fill(x < 0, 0.0), relu, ()),
    "masked fill in place": (lambda x: (y := x * 1).masked_fill_(y <= 0, 0.0), relu, ()),
    "set to zero": (set_to_zero, relu, ()),
    "mask": (lambda x: x * (x > 0), relu, ()),
    "mask, cast": (lambda x: (x > 0).to(x.dtype) * x, relu, ()),
    "mask, detached": (lambda x: x * (x.detach() >= 0).type_as(x).detach(), relu, ()),
    "mask, opposite": (lambda x: x * ~(x <= 0), relu, ()),
    "mask, in place": (times_itself, relu, ()),
    "mask, below": (lambda x: x * (x < 0), clamp, (None, 0.0)),
    "mask, edge": (lambda x: x * (x > 0.3), threshold, (0.3, 0.0)),
}
CORNERS: dict[str, Callable[[Tensor], Tensor]] = {
    "larger of two activations": lambda x: torch.maximum(x, x.flip(2)),
    "larger than the mean": lambda x: torch.maximum(x, x.mean(2, keepdim=True)),
    "gated by another": lambda x: torch.where(x > 0, x.flip(2), 0.0),
    "masked by another": lambda x: x * (x.flip(2) > 0),
    "elu by hand": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "between": lambda x: torch.where((x > 0) & (x < 1), x, 0.0),
    "a jump from an edge that counts": lambda x: torch.where(x >= 0.3, x, 0.0),
    "compared as integers": lambda x: x * (x.long() > 0),
    "smooth, of a minimum": F.logsigmoid,
    "smooth, of a choice": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "larger than more of itself": lambda x: torch.maximum(x, torch.tensor([0.5, 2.0, 0.1, 0.2]).to(x) * x),
    "repeated": lambda x: torch.maximum(x[:, :1], torch.zeros(3, 4).to(x)),
    "overwritten since": lambda x: (y := x * 1, mask := y > 0, y.neg_(), y * mask)[-1],
}


def clamped_and_moved(x: Tensor) -> Tensor:
    y = torch.maximum(x, torch.zeros_like(x))
    y += 1
    return torch.minimum(y, torch.full_like(x, 1.5))


def a_multiple_no_more(x: Tensor) -> Tensor:
    below = 0.1 * x
    below += 1
    return torch.where(x > 0, x, below)


def mask_overwritten(x: Tensor) -> Tensor:
    mask = (x > 0).to(x.dtype)
    mask.mul_(x)
    return mask * x


PLACES = torch.linspace(-0.3, 0.8, 12, dtype=torch.float64).reshape(3, 4)
SLOPED: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "along the last axis": (lambda x: torch.where(x > 0, x, PLACES[0].to(x) * x), PLACES[0]),
    "at every place": (lambda x: torch.where(x > 0, x, PLACES.to(x) * x), PLACES),
    "larger, along the last axis": (lambda x: torch.maximum(x, PLACES[1].abs().to(x) * x), PLACES[1].abs()),
    "as a parameter of one entry": (
        lambda x: torch.where(x > 0, x, torch.full((1, 1), 0.3).to(x) * x),
        torch.tensor(0.3),
    ),
}


CHAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamped and moved": clamped_and_moved,
    "a multiple no more": a_multiple_no_more,
    "mask overwritten": mask_overwritten,
    "norms with a floor": lambda x: (
        x / torch.maximum(torch.linalg.vector_norm(x, dim=2, keepdim=True), torch.full((3, 1), 0.5).to(x))
    ),
}


class Side(nn.Module):
    """Functions of one input side by side: [N, 3, 4] -> [N, functions, 3, 4]."""

    def __init__(self, functions: list[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([function(x) for function in self.functions], 1)


@functools.cache
def captured() -> Captured:
    """ALL, with their patterns replaced by gates."""
    graph = capture(Side(ALL).eval(), torch.zeros(2, 3, 4, dtype=torch.float64))
    optimise(graph.graph)
    return graph


ALL = [form[0] for form in FORMS.values()] + list(CORNERS.values()) + list(CHAINS.values())
IMAGE = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COTANGENT = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def alone(count: int) -> Tensor:
    """COTANGENT for each of `count` functions side by side in turn, and zeros for the others."""
    cotangent = torch.zeros(count, 5, count, 3, 4, dtype=torch.float64)
    for i in range(count):
        cotangent[i, :, i] = COTANGENT
    return cotangent.flatten(0, 1)


@functools.cache
def pulled(gate: str) -> list[Tensor]:
    """The pullback of each of ALL, by one graph: the input once for each, with a cotangent for it alone."""
    module, count = PullbackModule(captured(), Recipe(gate=gate)), len(ALL)
    _, found = module(IMAGE.repeat(count, 1, 1), alone(count), torch.tensor(T, dtype=torch.float64))
    return list(found.split(5))


def by_oracle(function: Callable[[Tensor], Tensor], gate: str) -> Tensor:
    module = Side([function]).eval()
    return reference_pullback(module, IMAGE, COTANGENT[:, None], recipe=Recipe(gate=gate), temperature=T)[1]


@pytest.mark.parametrize("gate", ["soft", "guided", "deconvnet", "hard"])
@pytest.mark.parametrize("name", FORMS)
def test_each_is_the_slow_rule_of_its_name(name: str, gate: str) -> None:
    function, operator, options = FORMS[name]
    expected = oracles.activation(operator, gate, IMAGE, COTANGENT, T, "lower", *options)
    assert torch.allclose(pulled(gate)[list(FORMS).index(name)], expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(by_oracle(function, gate), expected, rtol=1e-12, atol=1e-14)


@functools.cache
def sloped(gate: str) -> tuple[Tensor, list[Tensor]]:
    """The outputs of SLOPED, and the pullback of each, by one recorded graph."""
    functions = [function for function, _ in SLOPED.values()]
    graph = surgeon.rewrite(Side(functions).eval(), torch.zeros(2, 3, 4, dtype=torch.float64), Recipe(gate=gate))
    temperature = [torch.tensor(T, dtype=torch.float64)] if gate == "soft" else []
    output, found = graph(IMAGE.repeat(len(SLOPED), 1, 1), alone(len(SLOPED)), *temperature)
    return output[:5], list(found.split(5))


@pytest.mark.parametrize("gate", ["soft", "hard"])
@pytest.mark.parametrize("name", SLOPED)
def test_a_slope_for_each_place(name: str, gate: str) -> None:
    (function, slopes), place = SLOPED[name], list(SLOPED).index(name)
    open_ = torch.sigmoid(IMAGE / T) if gate == "soft" else (IMAGE > 0).double()
    expected = (slopes + (1 - slopes) * open_) * COTANGENT
    output, found = sloped(gate)
    assert torch.equal(output[:, place], function(IMAGE))
    assert torch.allclose(found[place], expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(by_oracle(function, gate), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CORNERS)
def test_other_corners_keep_their_derivative(name: str) -> None:
    x = IMAGE.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(CORNERS[name](x), x, COTANGENT)
    assert torch.allclose(pulled("soft")[len(FORMS) + list(CORNERS).index(name)], expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(by_oracle(CORNERS[name], "soft"), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CHAINS)
def test_the_oracle_and_the_graph_read_chains_alike(name: str) -> None:
    found = pulled("soft")[len(FORMS) + len(CORNERS) + list(CHAINS).index(name)]
    assert torch.allclose(found, by_oracle(CHAINS[name], "soft"), rtol=1e-12, atol=1e-14)


def test_they_are_listed_as_gates_in_their_place() -> None:
    module = PullbackModule(captured(), Recipe())
    assert len(module.gates) == len(FORMS) + 3  # of the chains
    assert {site.op for site in module.gates} == {str(operator) for _, operator, _ in FORMS.values()}
    support = check(Side([FORMS["mask"][0], FORMS["where"][0]]).eval(), torch.zeros(2, 3, 4))
    (gates,) = [found for found in support.operators if found.treatment == "gate"]
    assert gates.operator == str(relu)
    assert all(place.line.startswith("test_gate_patterns.py:") for place in gates.places)
    assert "aten.gt.Scalar" not in {found.operator for found in support.operators}


class ByHand(nn.Module):
    """A learned edge, a mask, and a hard sigmoid's cousin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.edge = nn.Parameter(torch.tensor([0.1, 0.0, -0.1, 0.2]).reshape(4, 1, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.maximum(self.first(x), self.edge)
        x = self.second(x)
        x = x * (x > 0).float()
        return self.head(x.mean((2, 3)))


def test_a_bundle_of_them_is_verified_and_without_their_names_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = ByHand().eval()
    bundle = surgeon.export(network, tmp_path / "named", Recipe(), input_shape=(3, 8, 8))
    assert [(site.op, site.rule) for site in bundle.manifest.gates] == [
        ("aten.clamp.Tensor", "soft"),
        ("aten.relu.default", "soft"),
    ]
    assert network.edge.requires_grad
    monkeypatch.setattr(
        passes, "PASSES", tuple(step for step in passes.PASSES if step.__name__ != "canonicalize_gates")
    )
    with pytest.raises(VerificationError, match="comparisons with autograd failed"):
        surgeon.export(network, tmp_path / "nameless", Recipe(), input_shape=(3, 8, 8))


def test_modules_alone_leaves_them_hard() -> None:
    by_hand = capture(ByHand().eval(), torch.zeros(2, 3, 8, 8))
    optimise(by_hand.graph)
    assert {site.rule for site in PullbackModule(by_hand, Recipe(gate_scope="modules")).gates} == {"hard"}
