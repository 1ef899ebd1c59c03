"""Matrix products."""

from __future__ import annotations

from torch import Tensor

from surgeon.conversion.rules.arithmetic import Lazy, unbroadcast
from surgeon.conversion.rules.registry import aten, rule


@rule(aten.linear.default)
def linear(g: Tensor, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Lazy, Lazy, Lazy]:
    """x @ weight.T + bias, over the last dimension of x."""
    columns = g.reshape(-1, g.shape[-1])
    return (
        g @ weight,
        lambda: columns.t() @ x.reshape(-1, x.shape[-1]),
        lambda: columns.sum(0),
    )


@rule(aten.addmm.default)
def addmm(
    g: Tensor, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> tuple[Lazy, Lazy, Lazy]:
    """beta * bias + alpha * a @ b."""
    scaled = g if alpha == 1 else alpha * g
    return (
        lambda: unbroadcast(g if beta == 1 else beta * g, bias),
        lambda: scaled @ b.t(),
        lambda: a.t() @ scaled,
    )


@rule(aten.mm.default)
def mm(g: Tensor, out: Tensor, a: Tensor, b: Tensor) -> tuple[Lazy, Lazy]:
    """a @ b, both of rank two."""
    return lambda: g @ b.t(), lambda: a.t() @ g


@rule(aten.bmm.default)
def bmm(g: Tensor, out: Tensor, a: Tensor, b: Tensor) -> tuple[Lazy, Lazy]:
    """a[i] @ b[i]."""
    return lambda: g @ b.transpose(1, 2), lambda: a.transpose(1, 2) @ g
