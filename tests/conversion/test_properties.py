"""Every rule at random shapes, options and temperatures: against autograd, and soft gates and pools against slow rules.

`tests/conversion/test_adjoints.py` draws the geometry of convolutions, average pools, slices and padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload

from surgeon.conversion.gates import GATES, BoundGate
from surgeon.conversion.rules import RULES
from tests import oracles

aten = torch.ops.aten
EXAMPLES = 12

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Draw:
    """Random numbers, sizes and tensors, all of which hypothesis can shrink or replay."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))

    def number(self, low: float, high: float) -> float:
        return self.data.draw(st.floats(low, high))

    def count(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def one_of(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def counts(self, length: int, low: int, high: int) -> list[int]:
        return [self.count(low, high) for _ in range(length)]

    def some(self, values: Any, least: int = 1) -> list[Any]:
        return self.data.draw(st.lists(st.sampled_from(list(values)), unique=True, min_size=least))

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def any_tensor(self, least: int = 1, most: int = 4) -> Tensor:
        return self.tensor(*self.counts(self.count(least, most), 1, 4))

    def axis(self, x: Tensor) -> int:
        return self.count(-x.dim(), x.dim() - 1)


def activation(*options: Callable[[Draw], Any]) -> Callable[[Draw], Call]:
    return lambda d: ((d.any_tensor(), *(option(d) for option in options)), {})


def edges(d: Draw) -> Call:
    low, high = d.number(-1, 0), d.number(0.1, 1)
    return (d.any_tensor(), *d.one_of((low,), (None, high), (low, high))), {}


def edge_tensors(d: Draw) -> Call:
    x = d.any_tensor()
    low = d.tensor(*x.shape[d.count(0, x.dim()) :])
    return (x, *d.one_of((low,), (None, low), (low, low + 0.5))), {}


def prelu(d: Draw) -> Call:
    x = d.any_tensor(2)
    return (x, d.tensor(d.one_of(1, x.shape[1]))), {}


def two_operands(d: Draw) -> Call:
    a = d.any_tensor(0)
    b = d.tensor(*(size if d.one_of(True, False) else 1 for size in a.shape[d.count(0, a.dim()) :]))
    b = torch.where(b.abs() < 0.2, 0.7, b)  # it may divide
    return (a, b), {}


def with_alpha(d: Draw) -> Call:
    (a, b), _ = two_operands(d)
    return d.one_of((a, b), (b, a)), {"alpha": d.one_of(1, 2, -0.5)}


def linear(d: Draw) -> Call:
    x, out = d.any_tensor(), d.count(1, 3)
    return (x, d.tensor(out, x.shape[-1]), d.one_of(None, d.tensor(out))), {}


def addmm(d: Draw) -> Call:
    n, k, m = d.counts(3, 1, 4)
    bias = d.one_of((m,), (n, m), (1, m))
    return (d.tensor(*bias), d.tensor(n, k), d.tensor(k, m)), {"beta": d.one_of(1, 2), "alpha": d.one_of(1, -3)}


def mm(d: Draw) -> Call:
    n, k, m = d.counts(3, 1, 4)
    return (d.tensor(n, k), d.tensor(k, m)), {}


def bmm(d: Draw) -> Call:
    b, n, k, m = d.counts(4, 1, 3)
    return (d.tensor(b, n, k), d.tensor(b, k, m)), {}


def batch_norm(d: Draw) -> Call:
    x = d.any_tensor(2)
    channels = x.shape[1]
    scale, shift = d.one_of((None, None), (d.tensor(channels), d.tensor(channels)))
    statistics = d.tensor(channels), d.tensor(channels).square() + 0.1
    return (
        x,
        *(v.requires_grad_(False) if v is not None else None for v in (scale, shift)),
        *statistics,
        0.1,
        1e-3,
    ), {}


def reduction(d: Draw) -> Call:
    x = d.any_tensor()
    dims = [dim - d.one_of(0, x.dim()) for dim in d.some(range(x.dim()))]
    return (x, dims, d.one_of(True, False)), {}


def resampling(*options: Any) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        x = d.tensor(*d.counts(2, 1, 2), *d.counts(2, 1, 6))
        size, scales = d.one_of((d.counts(2, 1, 8), None), (None, [d.number(1.0, 2.5), d.number(0.4, 1.0)]))
        if scales is not None and int(x.shape[3] * scales[1]) < 1:
            scales[1] = 1.0
        return (x, size, *([d.one_of(*options)] if options else []), scales), {}

    return call


def pool3d(d: Draw) -> Call:
    kernel = d.counts(3, 1, 2)
    padding = [d.count(0, k // 2) for k in kernel]
    size = [d.count(k, 4) for k in kernel]
    return (d.tensor(1, 2, *size), kernel, d.counts(3, 1, 2), padding, [1, 1, 1], d.one_of(True, False)), {}


def pool2d(d: Draw) -> Call:
    kernel, dilation = d.counts(2, 1, 3), d.counts(2, 1, 2)
    size = [d.count(s * (k - 1) + 1, 7) for k, s in zip(kernel, dilation, strict=True)]
    padding = [d.count(0, k // 2) for k in kernel]
    return (d.tensor(1, 2, *size), kernel, d.counts(2, 1, 3), padding, dilation, d.one_of(True, False)), {}


def reshaped(d: Draw) -> Call:
    x = d.any_tensor()
    sizes = list(x.shape)
    at = d.count(0, len(sizes))
    folded = [sizes[:at], [-1]] if d.one_of(True, False) else [[x.numel()], [1]]
    return (x, [size for part in folded for size in part]), {}


def at_axis(d: Draw) -> Call:
    x = d.any_tensor()
    return (x, d.axis(x)), {}


def flattened(d: Draw) -> Call:
    x = d.any_tensor()
    start = d.count(0, x.dim() - 1)
    return (x, start, d.count(start, x.dim() - 1)), {}


def permuted(d: Draw) -> Call:
    x = d.any_tensor()
    return (x, d.data.draw(st.permutations(range(x.dim())))), {}


def transposed(d: Draw) -> Call:
    x = d.any_tensor()
    return (x, d.axis(x), d.axis(x)), {}


def expanded(d: Draw) -> Call:
    x = d.any_tensor()
    sizes = [d.count(1, 3) if size == 1 else d.one_of(-1, size) for size in x.shape]
    return (x, [*d.counts(d.count(0, 1), 1, 3), *sizes]), {}


def copied(d: Draw) -> Call:
    x = d.any_tensor()
    return (x, d.tensor(*x.shape[d.count(0, x.dim()) :])), {}


def stacked(d: Draw) -> Call:
    x = d.any_tensor(1, 3)
    return ([x, *(d.tensor(*x.shape) for _ in range(d.count(0, 2)))], d.count(-x.dim() - 1, x.dim())), {}


def joined(d: Draw) -> Call:
    x = d.any_tensor(1, 3)
    dim = d.axis(x)
    shapes = [[size if axis != dim % x.dim() else d.count(1, 3) for axis, size in enumerate(x.shape)] for _ in "ab"]
    return ([x, *(d.tensor(*shape) for shape in shapes)], dim), {}


def split_unevenly(d: Draw) -> Call:
    lengths, before = d.counts(d.count(1, 3), 1, 3), d.count(1, 3)
    return (d.tensor(before, sum(lengths)), lengths, d.one_of(1, -1)), {}


def selected(d: Draw) -> Call:
    x = d.any_tensor()
    dim = d.axis(x)
    return (x, dim, d.count(-x.shape[dim], x.shape[dim] - 1)), {}


def unfolded(d: Draw) -> Call:
    x = d.any_tensor()
    dim = d.axis(x)
    return (x, dim, d.count(1, x.shape[dim]), d.count(1, 3)), {}


CALLS: dict[OpOverload, Callable[[Draw], Call]] = {
    aten.relu.default: activation(),
    aten.hardtanh.default: activation(lambda d: d.number(-1, 0), lambda d: d.number(0.1, 1)),
    aten.clamp.default: edges,
    aten.clamp.Tensor: edge_tensors,
    aten.threshold.default: activation(lambda d: d.number(-1, 1), lambda d: d.number(-9, 9)),
    aten.leaky_relu.default: activation(lambda d: d.number(-1, 1)),
    aten.prelu.default: prelu,
    aten.silu.default: activation(),
    aten.mish.default: activation(),
    aten.neg.default: activation(),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor), with_alpha),
    **dict.fromkeys((aten.mul.Tensor, aten.div.Tensor), two_operands),
    **dict.fromkeys(
        (aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar),
        activation(lambda d: d.number(-2, 2), lambda d: d.one_of(1, -2)),
    ),
    **dict.fromkeys((aten.mul.Scalar, aten.div.Scalar), activation(lambda d: d.number(0.5, 2))),
    aten.linear.default: linear,
    aten.addmm.default: addmm,
    aten.mm.default: mm,
    aten.bmm.default: bmm,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.max_pool2d_with_indices.default: pool2d,
    aten.adaptive_max_pool2d.default: lambda d: ((d.tensor(1, 2, *d.counts(2, 1, 7)), [1, 1]), {}),
    aten.max_pool3d_with_indices.default: pool3d,
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList), reduction),
    **dict.fromkeys((aten.mean.default, aten.sum.default), activation()),
    aten.upsample_nearest2d.vec: resampling(),
    aten.upsample_bilinear2d.vec: resampling(True, False),
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), reshaped),
    aten.unsqueeze.default: at_axis,
    aten.squeeze.default: activation(),
    aten.squeeze.dim: at_axis,
    aten.squeeze.dims: lambda d: ((x := d.any_tensor(), d.some(range(x.dim()))), {}),
    aten.flatten.using_ints: flattened,
    **dict.fromkeys((aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default), activation()),
    aten.dropout.default: activation(lambda d: d.number(0, 1), lambda d: False),
    aten._to_copy.default: lambda d: ((d.any_tensor(),), {"dtype": d.one_of(torch.float32, torch.float64)}),
    aten.copy.default: copied,
    aten.permute.default: permuted,
    aten.transpose.int: transposed,
    aten.t.default: lambda d: ((d.any_tensor(1, 2),), {}),
    aten.expand.default: expanded,
    aten.cat.default: joined,
    aten.stack.default: stacked,
    aten.split_with_sizes.default: split_unevenly,
    aten.split.Tensor: lambda d: ((x := d.any_tensor(), d.count(1, 4), d.axis(x)), {}),
    aten.unbind.int: at_axis,
    aten.select.int: selected,
    aten.unfold.default: unfolded,
}
ADJOINTS = {
    aten.convolution.default,
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool1d.default, aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default),
    *(aten.slice.Tensor, aten.constant_pad_nd.default),
}
"""What tests/conversion/test_adjoints.py draws."""
SEVERAL = {aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int}
FIRST = {
    aten.adaptive_max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten._native_batch_norm_legit_no_training.default,
}
"""Operators with several outputs, all or the first of which lead on."""
DIFFERENTIABLE: dict[OpOverload, Callable[..., Any]] = {aten.copy.default: lambda x, source: x.clone().copy_(source)}


def leaves(arguments: Any) -> list[Any]:
    return [leaf for argument in arguments for leaf in (argument if isinstance(argument, list) else [argument])]


def pairs(arguments: Any, entries: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(argument, its cotangent) for the tensors that the rule has one for."""
    for argument, entry in zip(arguments, entries, strict=False):
        if isinstance(argument, list) and isinstance(entry, (list, tuple)):
            yield from pairs(argument, entry)
        elif isinstance(argument, Tensor) and entry is not None:
            yield argument, entry() if callable(entry) else entry


def pull(
    operator: OpOverload, call: Call, gate: BoundGate, d: Draw
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """What the rule gives, by argument, and the cotangents that it got."""
    args, kwargs = call
    with torch.no_grad():
        out = operator(*args, **kwargs)
        outputs = list(out) if operator in SEVERAL else [out[0]] if operator in FIRST else [out]
        g = [d.tensor(*value.shape).to(value.dtype) for value in outputs]
        given: Any = g if operator in SEVERAL else [g[0], *[None] * (len(out) - 1)] if operator in FIRST else g[0]
        bound = {} if RULES[operator].kind == "exact" else {"ramp": gate}
        return list(pairs(args, RULES[operator].backward(given, out, *args, **kwargs, **bound))), g


def close(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    return bool((found - expected).norm() <= 1e-10 * (expected.norm() + 1))


def test_every_rule_is_drawn() -> None:
    assert set(CALLS) | ADJOINTS == set(RULES)
    assert not set(CALLS) & ADJOINTS


@pytest.mark.parametrize("operator", CALLS, ids=str)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_exact_rules_and_hard_gates_are_the_gradient(operator: OpOverload, data: st.DataObject) -> None:
    d = Draw(data)
    args, kwargs = CALLS[operator](d)
    pulled, g = pull(operator, (args, kwargs), BoundGate(GATES["hard"], torch.ones((), dtype=torch.float64), "both"), d)
    assert pulled
    for leaf in leaves(args):
        if isinstance(leaf, Tensor):
            leaf.requires_grad_(any(leaf is argument for argument, _ in pulled))
    out = DIFFERENTIABLE.get(operator, operator)(*args, **kwargs)
    outputs = list(out) if operator in SEVERAL else [out[0]] if operator in FIRST else [out]
    expected = torch.autograd.grad(outputs, [argument for argument, _ in pulled], g)
    assert all(close(found, wanted) for (_, found), wanted in zip(pulled, expected, strict=True))


@pytest.mark.parametrize("policy", GATES)
@pytest.mark.parametrize("operator", [one for one in CALLS if RULES[one].kind == "gate"], ids=str)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_gates_are_the_slow_rule(operator: OpOverload, policy: str, data: st.DataObject) -> None:
    d = Draw(data)
    (z, *options), kwargs = CALLS[operator](d)
    temperature, both = d.number(0.05, 5), d.one_of("lower", "both")
    gate = BoundGate(GATES[policy], torch.tensor(1 / temperature, dtype=torch.float64), both)
    [(_, found), *_], (g,) = pull(operator, ((z, *options), kwargs), gate, d)
    assert close(found, oracles.activation(operator, policy, z, g, temperature, both, *options))


@pytest.mark.parametrize("operator", [one for one in CALLS if RULES[one].kind == "pool"], ids=str)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_soft_pools_are_the_slow_rule(operator: OpOverload, data: st.DataObject) -> None:
    d = Draw(data)
    call, temperature = CALLS[operator](d), d.number(0.05, 5)
    gate = BoundGate(GATES["soft"], torch.tensor(1 / temperature, dtype=torch.float64))
    [(x, found)], (g,) = pull(operator, call, gate, d)
    whole = operator is aten.adaptive_max_pool2d.default
    window = (list(x.shape[2:]), [1, 1], [0, 0], [1, 1]) if whole else call[0][1:5]
    assert close(found, oracles.soft_max_pool(x, g, *window, temperature))
