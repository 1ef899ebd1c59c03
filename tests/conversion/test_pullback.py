"""Whole networks, small, against the independent oracle; and mistakes planted on purpose."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.analysis.inspect.convertibility import check
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.passes.optimise import optimise
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import rewrite
from surgeon.conversion.rules.registry import RULES, Rule
from surgeon.errors import ConversionError
from surgeon.verify.oracle.reference import reference_pullback
from tests.networks import NETWORKS, Stem, build, example

aten = torch.ops.aten
RECIPES = {
    "soft": Recipe(),
    "both edges": Recipe(edges="both"),
    "modules only": Recipe(gate_scope="modules"),
    "soft gates, hard pools": Recipe(pool="hard"),
    "hard": Recipe(gate="hard", pool="hard"),
    "guided": Recipe(gate="guided", pool="hard"),
    "deconvnet": Recipe(gate="deconvnet", pool="hard"),
}


def error(module: nn.Module, pullback: Callable[..., Any], x: Tensor, recipe: Recipe, temperature: float) -> float:
    """Relative L2 of the pullback against the oracle's; raises where the outputs differ."""
    v = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    output, expected = reference_pullback(module, x, v, recipe=recipe, temperature=temperature)
    found, pulled = pullback(x, v, torch.tensor(temperature, dtype=x.dtype))
    assert torch.allclose(found, output, rtol=1e-10)
    assert len(x) == 1 or expected.norm() > 1e-6
    return ((pulled - expected).norm() / expected.norm().clamp(min=1e-6)).item()


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[type[nn.Module], nn.Module, Any]:
    """(class, module, its captured and optimised graph)."""
    kind = NETWORKS[request.param]
    captured = capture(build(kind), example(kind, batch=4))
    optimise(captured.graph)
    return kind, build(kind), captured


@pytest.mark.parametrize("recipe", RECIPES)
def test_networks_agree_with_the_oracle(network: tuple[type[nn.Module], nn.Module, Any], recipe: str) -> None:
    kind, module, captured = network
    pullback = PullbackModule(captured, RECIPES[recipe])
    for batch, temperature in ((1, 0.3), (3, 2.0)) if recipe in ("soft", "hard") else ((2, 0.7),):
        assert error(module, pullback, example(kind, batch), RECIPES[recipe], temperature) < 1e-10


def test_the_explicit_graph_is_the_same_module_at_any_batch() -> None:
    kind = Stem
    module = build(kind)
    graph = rewrite(module, example(kind, batch=1))
    for batch, temperature in ((1, 0.1), (2, 1.0), (5, 3.0)):
        assert error(module, graph, example(kind, batch), Recipe(), temperature) < 1e-10
    assert len(graph.graph.output_node().args[0]) == 2
    assert [node.target for node in graph.graph.nodes if node.op == "placeholder"] == [
        "input", "cotangent", "temperature",
    ]  # fmt: skip


def test_nothing_reads_a_temperature_where_all_gates_are_hard() -> None:
    module, x = build(Stem), example(Stem)
    graph = rewrite(module, x, RECIPES["hard"])
    leaf = x.clone().requires_grad_(True)
    output = module(leaf)
    v = torch.randn_like(output)
    assert (graph(x, v)[1] - torch.autograd.grad(output, leaf, v)[0]).norm() < 1e-10


def test_rewriting_leaves_the_module_alone() -> None:
    module = build(Stem)
    before = copy.deepcopy(module.state_dict())
    rewrite(module, example(Stem))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# Each is a mistake that still runs, and gives a plausible picture.
PLANTED: dict[str, tuple[object, Callable[..., Any]]] = {
    "gate multiplied by 1[z > 0]": (aten.relu.default, lambda g, out, z, gate: (gate(z, g) * (z > 0),)),
    "gate at the activation": (aten.relu.default, lambda g, out, z, gate: (gate(out, g),)),
    "gate without temperature": (aten.relu.default, lambda g, out, z, gate: (torch.sigmoid(z) * g,)),
    "pool without its second term": (
        aten.max_pool2d_with_indices.default,
        lambda g, out, x, *options, gate: RULES_BEFORE(g, out, torch.zeros_like(x) + 0 * x, *options, gate=gate),
    ),
    "kernel not flipped": (
        aten.convolution.default,
        lambda g, out, x, w, b, s, p, d, t, o, n: (
            lambda: aten.convolution.default(g, w.flip(2, 3), None, s, p, d, True, [0, 0], n)[
                :, :, : x.shape[2], : x.shape[3]
            ],
            None,
        ),
    ),
    "mean without its division": (
        aten.mean.dim,
        lambda g, out, x, dims, keepdim=False: (g.reshape(*g.shape[:2], 1, 1).expand(x.shape),),
    ),
}
RULES_BEFORE = RULES[aten.max_pool2d_with_indices.default].backward


@functools.cache
def captured_stem() -> Captured:
    return capture(build(Stem), example(Stem))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    operator, wrong = PLANTED[name]
    monkeypatch.setitem(RULES, operator, Rule(wrong, RULES[operator].kind))
    kind = Stem
    pullback = PullbackModule(captured_stem(), Recipe())
    assert error(build(kind), pullback, example(kind), Recipe(), 0.5) > 1e-3


@pytest.mark.parametrize("message", ["no such size\nand more", "", "   "])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_rule_that_raises_is_reported_with_node_and_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, message: str, lazy: bool
) -> None:
    def fail() -> None:
        raise RuntimeError(message)

    def rule(*_: Any, **__: Any) -> Any:
        return (fail,) if lazy else fail()

    monkeypatch.setitem(RULES, aten.relu.default, Rule(rule, "gate"))
    reason = "no such size" if "size" in message else "RuntimeError"
    refusal = rf"the rule of aten\.relu\.default \(relu in relu, networks\.py:\d+\) fails \({reason}\)"
    module, x = build(Stem).float(), example(Stem).float()
    with pytest.raises(ConversionError, match=refusal) as error:
        rewrite(module, x)
    assert error.value.remedy.startswith("Mend the rule in surgeon/conversion/rules")
    assert isinstance(error.value.__cause__, RuntimeError)
    report = check(module, x)
    assert re.match(refusal, report.refusal.message if report.refusal else "")
    with pytest.raises(ConversionError, match=refusal):
        surgeon.export(module, tmp_path / "bundle", input_shape=tuple(x.shape[1:]))
    assert not (tmp_path / "bundle").exists()


def test_zennit_agrees_on_guided_backpropagation() -> None:
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    module, x = build(Stem), example(Stem)
    v = torch.randn(module(x).shape, dtype=x.dtype)
    _, expected = attribution.Gradient(module, composites.GuidedBackprop())(x.clone(), v)
    _, pulled = PullbackModule(captured_stem(), RECIPES["guided"])(x, v)
    assert (pulled - expected).norm() < 1e-10 * expected.norm()
