"""Random geometry: linear operators by the adjoint identity <A x, y> = <x, A' y>, pools against slow rules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from surgeon.conversion.gates import GATES, BoundGate
from surgeon.conversion.rules import RULES
from tests import oracles

aten = torch.ops.aten
small = st.integers(1, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def is_adjoint(operator: Any, x: Tensor, *options: Any, **keywords: Any) -> bool:
    """Whether the rule is the adjoint of x -> operator(x, …), which has to be linear in x."""
    out = operator(x, *options, **keywords)
    y = normal(*out.shape, seed=1)
    entry = RULES[operator].backward(y, out, x, *options, **keywords)[0]
    pulled = entry() if callable(entry) else entry
    assert pulled.shape == x.shape
    left, right = (out * y).sum(), (x * pulled).sum()
    return bool((left - right).abs() <= 1e-11 * (out.norm() * y.norm() + 1))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, ...]:
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(axes)]

    groups, kernel, stride, padding, dilation = draw(small), each(1, 3), each(1, 3), each(0, 3), each(1, 3)
    transposed = draw(st.booleans())
    inner, outer = groups * draw(small), groups * draw(small)
    # Output padding is smaller than stride or dilation; a longer stride shows the edge best.
    extra = [draw(st.integers(0, max(s, d) - 1)) if transposed else 0 for s, d in zip(stride, dilation, strict=True)]
    size = each(1, 7)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        out = [(size[a] - 1) * stride[a] - 2 * padding[a] + reach[a] + extra[a] + 1 for a in range(axes)]
        weight = (inner, outer // groups, *kernel)
    else:
        out = [size[a] + 2 * padding[a] - reach[a] for a in range(axes)]
        weight = (outer, inner // groups, *kernel)
    assume(min(out) >= 1)
    return (draw(small), inner, *size), weight, stride, padding, dilation, transposed, extra, groups


@given(convolutions())
@example(((1, 2, 5, 5), (2, 1, 3, 3), [1, 1], [0, 0], [3, 3], True, [2, 2], 1))
@example(((2, 3, 6), (3, 1, 3), [3], [0], [1], False, [0], 3))
@example(((2, 2, 6), (4, 2, 1), [1], [3], [1], False, [0], 1))
def test_convolutions(case: tuple[Any, ...]) -> None:
    shape, weight, stride, padding, dilation, transposed, extra, groups = case
    options = (stride, padding, dilation, transposed, extra, groups)
    assert is_adjoint(aten.convolution.default, normal(*shape), normal(*weight, seed=2), None, *options)


@given(st.integers(1, 3), st.data(), st.booleans(), st.booleans(), st.sampled_from([None, None, 1, 5]))
def test_average_pools(axes: int, data: st.DataObject, ceil: bool, count: bool, divisor: int | None) -> None:
    kernel = [data.draw(st.integers(1, 4)) for _ in range(axes)]
    stride = data.draw(st.just([]) | st.lists(small, min_size=axes, max_size=axes))
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    size = [data.draw(st.integers(k, 8)) for k in kernel]
    operator = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)[axes - 1]
    extra = [] if axes == 1 else [divisor]
    assert is_adjoint(operator, normal(2, 2, *size), kernel, stride, padding, ceil, count, *extra)


@given(st.integers(1, 3), st.data())
def test_adaptive_pools(axes: int, data: st.DataObject) -> None:
    size, out = ([data.draw(st.integers(1, 9)) for _ in range(axes)] for _ in range(2))
    operators = (aten.adaptive_avg_pool1d.default, aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
    assert is_adjoint(operators[axes - 1], normal(2, 2, *size), out)


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=2))
def test_linear(inner: int, outer: int, between: list[int]) -> None:
    assert is_adjoint(aten.linear.default, normal(3, *between, inner), normal(outer, inner, seed=2), None)


@given(st.integers(1, 7), st.data())
def test_slices(size: int, data: st.DataObject) -> None:
    end = st.integers(-9, 9) | st.none() | st.just(2**63 - 1)
    start, stop, step, dim = data.draw(end), data.draw(end), data.draw(small), data.draw(st.sampled_from([1, -1]))
    x = normal(2, size) if dim == 1 else normal(2, 3, size)
    assert is_adjoint(aten.slice.Tensor, x, dim, start, stop, step)


@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_padding(data: st.DataObject, height: int, width: int) -> None:
    widths = [data.draw(st.integers(-2, 3)) for _ in range(data.draw(st.sampled_from([2, 4])))]
    assume(width + sum(widths[:2]) > 0 and height + sum(widths[2:]) > 0)
    assert is_adjoint(aten.constant_pad_nd.default, normal(2, height, width), widths)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.sampled_from([0, 1, -1]))
def test_concatenation(lengths: list[int], dim: int) -> None:
    shapes = [[2, 3] for _ in lengths]
    for shape, length in zip(shapes, lengths, strict=True):
        shape[dim] = length
    pieces = [normal(*shape) for shape in shapes]
    out = aten.cat.default(pieces, dim)
    y = normal(*out.shape, seed=1)
    (pulled,) = RULES[aten.cat.default].backward(y, out, pieces, dim)
    assert [piece.shape for piece in pulled] == [piece.shape for piece in pieces]
    assert torch.equal(torch.cat(pulled, dim), y)


@st.composite
def pools(draw: st.DrawFn) -> tuple[Any, ...]:
    """size, kernel, stride, padding, dilation, ceil mode."""
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    stride, dilation = ([draw(small) for _ in range(2)] for _ in range(2))
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    size = [draw(st.integers(d * (k - 1) + 1, 8)) for k, d in zip(kernel, dilation, strict=True)]
    return size, kernel, stride, padding, dilation, draw(st.booleans())


@given(pools(), st.floats(0.01, 10), st.floats(-4, 4))
@example(([9, 8], [2, 3], [2, 2], [1, 1], [1, 1], True), 0.3, -3.0)  # PyTorch drops a window that begins in the padding
@example(([6, 6], [3, 3], [1, 1], [1, 1], [2, 2], True), 0.05, -4.0)
def test_soft_max_pools(pool: tuple[Any, ...], temperature: float, shift: float) -> None:
    size, kernel, stride, padding, dilation, ceil = pool
    x = normal(1, 2, *size) + shift
    options = (kernel, stride, padding, dilation, ceil)
    out = aten.max_pool2d_with_indices.default(x, *options)
    g = normal(*out[0].shape, seed=1)
    rule = RULES[aten.max_pool2d_with_indices.default].backward

    def pull(dtype: torch.dtype) -> Tensor:
        gate = BoundGate(GATES["soft"], torch.tensor(1 / temperature, dtype=dtype))
        low = [x.to(dtype), out[0].to(dtype), g.to(dtype)]
        return rule((low[2], None), (low[1], out[1]), low[0], *options, gate=gate)[0]

    expected = oracles.soft_max_pool(x, g, kernel, stride, padding, dilation, temperature)
    assert (pull(torch.float64) - expected).norm() <= 1e-11 * (expected.norm() + 1)
    single = pull(torch.float32)
    assert single.isfinite().all()
    # Rounding x moves y = x/T by eps |x|/T, and the weights by as much.
    slack = 1e-5 + 1e-6 * (4 + abs(shift)) / temperature
    assert (single.double() - expected).norm() <= slack * (expected.norm() + g.norm())


@given(pools(), st.floats(-4, 4))
def test_hard_max_pools(pool: tuple[Any, ...], shift: float) -> None:
    size, *options = pool
    x = (normal(2, 2, *size) + shift).requires_grad_(True)
    out = aten.max_pool2d_with_indices.default(x, *options)
    g = normal(*out[0].shape, seed=1)
    (expected,) = torch.autograd.grad(out[0], x, g)
    gate = BoundGate(GATES["hard"], torch.ones((), dtype=torch.float64))
    (found,) = RULES[aten.max_pool2d_with_indices.default].backward((g, None), out, x.detach(), *options, gate=gate)
    assert torch.allclose(found, expected, rtol=1e-14, atol=1e-14)


def test_a_cold_soft_pool_is_the_hard_one_and_a_hot_one_the_average() -> None:
    x, g = normal(1, 2, 6, 6), normal(1, 2, 3, 3, seed=1)
    out = aten.max_pool2d_with_indices.default(x, [2, 2])
    rule = RULES[aten.max_pool2d_with_indices.default].backward
    found = {
        inverse_temperature: rule(
            (g, None), out, x, [2, 2], gate=BoundGate(GATES["soft"], torch.tensor(inverse_temperature, dtype=x.dtype))
        )[0]
        for inverse_temperature in (1e7, 0.0)
    }
    leaf = x.clone().requires_grad_(True)
    assert torch.allclose(found[1e7], torch.autograd.grad(F.max_pool2d(leaf, 2), leaf, g)[0], atol=1e-12)
    assert torch.allclose(found[0.0], torch.autograd.grad(F.avg_pool2d(leaf, 2), leaf, g)[0], atol=1e-12)
