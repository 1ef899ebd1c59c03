"""Random arguments for operators: what `tests.samples` names for each, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Call:
    """Arguments of one call. Its rule has to give cotangents of the tensors that require a gradient.

    `used` are the outputs that get a cotangent; None: the only one, the first of several, all of a list.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    used: tuple[int, ...] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Tensor)]


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

    def some(self, values: Any) -> list[Any]:
        return self.data.draw(st.lists(st.sampled_from(list(values)), unique=True, min_size=1))

    def parameter(self, *shape: int) -> Tensor:
        """A tensor that no gradient flows through."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def tensor(self, *shape: int, shift: float = 0.0) -> Tensor:
        return (self.parameter(*shape) + shift).requires_grad_(True)

    def any_tensor(self, least: int = 1, most: int = 4) -> Tensor:
        return self.tensor(*self.counts(self.count(least, most), 1, 4))

    def axis(self, x: Tensor) -> int:
        return self.count(-x.dim(), x.dim() - 1)


Arguments = Callable[[Draw], Call]


def c(*args: Any, **kwargs: Any) -> Call:
    """Write a call as it is written."""
    return Call(args, kwargs)


def pointwise(*options: Callable[[Draw], Any]) -> Arguments:
    """A tensor of any shape, and the operator's further arguments."""
    return lambda d: c(d.any_tensor(), *(option(d) for option in options))


def edges(d: Draw) -> Call:
    low, high = d.number(-1, 0), d.number(0.1, 1)
    return c(d.any_tensor(), *d.one_of((low,), (None, high), (low, high)))


def edge_tensors(d: Draw) -> Call:
    x = d.any_tensor()
    low = d.parameter(*x.shape[d.count(0, x.dim()) :])
    return c(x, *d.one_of((low,), (None, low), (low, low + 0.5)))


def prelu(d: Draw) -> Call:
    x = d.any_tensor(2)
    return c(x, d.tensor(d.one_of(1, x.shape[1])))


def two_operands(d: Draw) -> Call:
    a = d.any_tensor(0)
    b = d.parameter(*(size if d.one_of(True, False) else 1 for size in a.shape[d.count(0, a.dim()) :]))
    return c(a, torch.where(b.abs() < 0.2, 0.7, b).requires_grad_(True))  # it may divide


def with_alpha(d: Draw) -> Call:
    a, b = two_operands(d).args
    return c(*d.one_of((a, b), (b, a)), alpha=d.one_of(1, 2, -0.5))


def convolution(d: Draw) -> Call:
    axes, groups, transposed = d.count(1, 3), d.count(1, 3), d.one_of(False, True)
    kernel, stride, padding, dilation = (d.counts(axes, *bounds) for bounds in ((1, 3), (1, 3), (0, 3), (1, 3)))
    inner, outer = groups * d.count(1, 3), groups * d.count(1, 3)
    # Output padding is smaller than stride or dilation; a longer stride shows the edge best.
    extra = [d.count(0, max(s, t) - 1) if transposed else 0 for s, t in zip(stride, dilation, strict=True)]
    size = d.counts(axes, 1, 7)
    reach = [t * (k - 1) for t, k in zip(dilation, kernel, strict=True)]
    if transposed:
        out = [(size[a] - 1) * stride[a] - 2 * padding[a] + reach[a] + extra[a] + 1 for a in range(axes)]
        weight = (inner, outer // groups, *kernel)
    else:
        out = [size[a] + 2 * padding[a] - reach[a] for a in range(axes)]
        weight = (outer, inner // groups, *kernel)
    assume(min(out) >= 1)
    bias = d.tensor(outer) if d.one_of(False, True) else None
    x = d.tensor(d.count(1, 3), inner, *size)
    return c(x, d.parameter(*weight), bias, stride, padding, dilation, transposed, extra, groups)


def reduction(d: Draw) -> Call:
    x = d.any_tensor()
    dims = [dim - d.one_of(0, x.dim()) for dim in d.some(range(x.dim()))]
    return c(x, dims, d.one_of(True, False))


def resampling(*options: Any) -> Arguments:
    def draw(d: Draw) -> Call:
        x = d.tensor(*d.counts(2, 1, 2), *d.counts(2, 1, 6))
        size, scales = d.one_of((d.counts(2, 1, 8), None), (None, [d.number(1.0, 2.5), d.number(0.4, 1.0)]))
        if scales is not None and int(x.shape[3] * scales[1]) < 1:
            scales[1] = 1.0
        return c(x, size, *([d.one_of(*options)] if options else []), scales)

    return draw


def max_pool2d(d: Draw) -> Call:
    kernel, dilation = d.counts(2, 1, 3), d.counts(2, 1, 3)
    size = [d.count(s * (k - 1) + 1, 8) for k, s in zip(kernel, dilation, strict=True)]
    padding = [d.count(0, k // 2) for k in kernel]
    x = d.tensor(1, 2, *size, shift=d.number(-4, 4))
    return c(x, kernel, d.counts(2, 1, 3), padding, dilation, d.one_of(True, False))


def max_pool3d(d: Draw) -> Call:
    kernel = d.counts(3, 1, 2)
    padding = [d.count(0, k // 2) for k in kernel]
    size = [d.count(k, 4) for k in kernel]
    return c(d.tensor(1, 2, *size), kernel, d.counts(3, 1, 2), padding, [1, 1, 1], d.one_of(True, False))


def average_pool(axes: int) -> Arguments:
    def draw(d: Draw) -> Call:
        kernel = d.counts(axes, 1, 4)
        stride = d.one_of([], d.counts(axes, 1, 3))
        padding = [d.count(0, k // 2) for k in kernel]
        x = d.tensor(2, 2, *(d.count(k, 8) for k in kernel))
        divisor = [] if axes == 1 else [d.one_of(None, None, 1, 5)]
        return c(x, kernel, stride, padding, d.one_of(True, False), d.one_of(True, False), *divisor)

    return draw


def adaptive_pool(axes: int) -> Arguments:
    return lambda d: c(d.tensor(2, 2, *d.counts(axes, 1, 9)), d.counts(axes, 1, 9))


def reshaped(d: Draw) -> Call:
    x = d.any_tensor()
    sizes = list(x.shape)
    at = d.count(0, len(sizes))
    return c(x, d.one_of([*sizes[:at], -1], [x.numel(), 1]))


def at_axis(d: Draw) -> Call:
    x = d.any_tensor()
    return c(x, d.axis(x))


def at_axes(d: Draw) -> Call:
    x = d.any_tensor()
    return c(x, d.some(range(x.dim())))


def flattened(d: Draw) -> Call:
    x = d.any_tensor()
    start = d.count(0, x.dim() - 1)
    return c(x, start, d.count(start, x.dim() - 1))


def permuted(d: Draw) -> Call:
    x = d.any_tensor()
    return c(x, d.data.draw(st.permutations(range(x.dim()))))


def transposed(d: Draw) -> Call:
    x = d.any_tensor()
    return c(x, d.axis(x), d.axis(x))


def expanded(d: Draw) -> Call:
    x = d.any_tensor()
    sizes = [d.count(1, 3) if size == 1 else d.one_of(-1, size) for size in x.shape]
    return c(x, [*d.counts(d.count(0, 1), 1, 3), *sizes])


def cast(d: Draw) -> Call:
    return c(d.any_tensor(), dtype=d.one_of(torch.float32, torch.float64))


def copied(d: Draw) -> Call:
    x = d.any_tensor()
    return c(x, d.tensor(*x.shape[d.count(0, x.dim()) :]))


def stacked(d: Draw) -> Call:
    x = d.any_tensor(1, 3)
    return c([x, *(d.tensor(*x.shape) for _ in range(d.count(0, 2)))], d.count(-x.dim() - 1, x.dim()))


def joined(d: Draw) -> Call:
    shape = d.counts(d.count(1, 3), 1, 3)
    dim = d.count(-len(shape), len(shape) - 1)
    shapes = [[*shape] for _ in range(d.count(1, 4))]
    for piece in shapes:
        piece[dim] = d.count(0, 3)
    assume(any(piece[dim] for piece in shapes))
    return c([d.tensor(*piece) for piece in shapes], dim)


def split_unevenly(d: Draw) -> Call:
    lengths, before = d.counts(d.count(1, 3), 1, 3), d.count(1, 3)
    return c(d.tensor(before, sum(lengths)), lengths, d.one_of(1, -1))


def split_evenly(d: Draw) -> Call:
    x = d.any_tensor()
    return c(x, d.count(1, 4), d.axis(x))


def sliced(d: Draw) -> Call:
    x = d.any_tensor(1, 3) if d.one_of(True, False) else d.tensor(2, d.count(1, 7))
    ends = st.integers(-9, 9) | st.none() | st.just(2**63 - 1)
    return c(x, d.axis(x), d.data.draw(ends), d.data.draw(ends), d.count(1, 3))


def selected(d: Draw) -> Call:
    x = d.any_tensor()
    dim = d.axis(x)
    return c(x, dim, d.count(-x.shape[dim], x.shape[dim] - 1))


def unfolded(d: Draw) -> Call:
    x = d.any_tensor()
    dim = d.axis(x)
    return c(x, dim, d.count(1, x.shape[dim]), d.count(1, 3))


def padded(d: Draw) -> Call:
    height, width, widths = d.count(1, 4), d.count(1, 4), d.counts(d.one_of(2, 4), -2, 3)
    assume(width + sum(widths[:2]) > 0 and height + sum(widths[2:]) > 0)
    return c(d.tensor(2, height, width), widths, d.one_of(0.0, 2.5))
