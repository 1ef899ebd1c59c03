"""Every rule at random shapes, options and temperatures: against autograd, the adjoint identity and slow formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from surgeon.conversion.gates import GATES, BoundGate
from surgeon.conversion.rules import RULES, smooth
from tests import oracles
from tests.draws import Call, Draw
from tests.samples import DIFFERENTIABLE, OPERATORS, cotangents, outputs, pull

aten = torch.ops.aten
GATED = [operator for operator in OPERATORS if RULES[operator].kind == "gate"]
POOLS = [operator for operator in OPERATORS if RULES[operator].kind == "pool"]
LINEAR = [
    operator
    for operator, known in RULES.items()
    if known.kind == "exact" and known.backward.__module__ != smooth.__name__
]
"""Operators that are linear in their first argument, apart from a constant."""
GEOMETRY = {*POOLS, aten.convolution.default, aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
"""Operators with many options, which get more examples."""

hard = BoundGate(GATES["hard"], torch.ones((), dtype=torch.float64), "both")


def soft(temperature: float, dtype: torch.dtype = torch.float64) -> BoundGate:
    return BoundGate(GATES["soft"], torch.tensor(1 / temperature, dtype=dtype))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    assert found.shape == expected.shape
    return bool((found - expected).norm() <= tolerance * (expected.norm() + 1))


def with_examples(operator: OpOverload, test: object) -> None:
    """Run the hypothesis test with as many examples as the operator's options ask for."""
    settings(max_examples=30 if operator in GEOMETRY else 12)(test)()  # type: ignore[operator]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_exact_rules_and_hard_gates_are_the_gradient(operator: OpOverload) -> None:
    @given(data=st.data())
    def is_gradient(data: st.DataObject) -> None:
        call = OPERATORS[operator].draw(Draw(data))
        g = cotangents(operator, call)
        pulled = pull(operator, call, g, hard)
        found = outputs(call, DIFFERENTIABLE.get(operator, operator)(*call.args, **call.kwargs))
        expected = torch.autograd.grad(found, [tensor for tensor in call.tensors if tensor.requires_grad], g)
        assert all(close(mine, gradient) for mine, gradient in zip(pulled, expected, strict=True))

    with_examples(operator, is_gradient)


@pytest.mark.parametrize("operator", LINEAR, ids=str)
def test_linear_operators_have_their_adjoint(operator: OpOverload) -> None:
    """<A x - A 0, g> = <x, A' g>, whatever autograd says."""

    @given(data=st.data())
    def is_adjoint(data: st.DataObject) -> None:
        call = OPERATORS[operator].draw(Draw(data))
        x, *options = call.args
        leaves = [leaf.detach() for leaf in pytree.tree_leaves(x)]
        zero = Call((pytree.tree_map(torch.zeros_like, x), *options), call.kwargs, call.used)
        g = cotangents(operator, call)
        pulled = pull(operator, call, g)[: len(leaves)]
        with torch.no_grad():
            there, origin = (outputs(one, operator(*one.args, **one.kwargs)) for one in (call, zero))
        moved = [a - b for a, b in zip(there, origin, strict=True)]
        left = sum((a * b).sum() for a, b in zip(moved, g, strict=True))
        right = sum((a * b).sum() for a, b in zip(leaves, pulled, strict=True))
        size = sum(a.norm() * b.norm() for a, b in zip(moved, g, strict=True))
        assert (left - right).abs() <= (1e-11 if moved[0].dtype == torch.float64 else 1e-5) * (size + 1)

    with_examples(operator, is_adjoint)


@pytest.mark.parametrize("policy", GATES)
@pytest.mark.parametrize("operator", GATED, ids=str)
def test_gates_are_the_slow_rule(operator: OpOverload, policy: str) -> None:
    @given(data=st.data())
    def is_slow_rule(data: st.DataObject) -> None:
        d = Draw(data)
        call = OPERATORS[operator].draw(d)
        (g,) = cotangents(operator, call)
        temperature, edges = d.number(0.05, 5), d.one_of("lower", "both")
        gate = BoundGate(GATES[policy], torch.tensor(1 / temperature, dtype=torch.float64), edges)
        z, *options = (leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in call.args)
        found = pull(operator, call, [g], gate)[0]
        assert close(found, oracles.activation(operator, policy, z, g, temperature, edges, *options))

    with_examples(operator, is_slow_rule)


@pytest.mark.parametrize("operator", POOLS, ids=str)
def test_soft_pools_are_the_slow_rule(operator: OpOverload) -> None:
    @given(data=st.data())
    def is_slow_rule(data: st.DataObject) -> None:
        d = Draw(data)
        call, temperature = OPERATORS[operator].draw(d), d.number(0.01, 10)
        (g,) = cotangents(operator, call)
        expected = oracles.soft_max_pool_of(operator, call.args, g, temperature)
        (found,) = pull(operator, call, [g], soft(temperature))
        assert close(found, expected, 1e-11)
        x, *options = call.args
        single = Call((x.detach().float().requires_grad_(True), *options), call.kwargs, call.used)
        (rounded,) = pull(operator, single, [g.float()], soft(temperature, torch.float32))
        assert rounded.isfinite().all()
        # Rounding x moves y = x/T by eps |x|/T, and the weights by as much.
        slack = 1e-5 + 1e-6 * (4 + x.detach().abs().max().item()) / temperature
        assert (rounded.double() - expected).norm() <= slack * (expected.norm() + g.norm())

    with_examples(operator, is_slow_rule)


def test_a_cold_soft_pool_is_the_hard_one_and_a_hot_one_the_average() -> None:
    x = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    call = Call((x, [2, 2]), {})
    g = cotangents(aten.max_pool2d_with_indices.default, call)
    for inverse_temperature, pool in ((1e7, F.max_pool2d), (0.0, F.avg_pool2d)):
        gate = BoundGate(GATES["soft"], torch.tensor(inverse_temperature, dtype=torch.float64))
        (found,) = pull(aten.max_pool2d_with_indices.default, call, g, gate)
        assert torch.allclose(found, torch.autograd.grad(pool(x, 2), x, g)[0], atol=1e-12)
