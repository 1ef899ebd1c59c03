"""Elementwise arithmetic, with broadcasting undone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from surgeon.conversion.rules.registry import aten, rule

Operand = Tensor | float | int
Lazy = Callable[[], Tensor | None] | Tensor | None


def unbroadcast(g: Tensor, operand: Operand) -> Tensor | None:
    """`g` summed over the dimensions along which `operand` was repeated; None for a number."""
    if not isinstance(operand, Tensor):
        return None
    leading = g.dim() - operand.dim()
    repeated = [
        dim for dim in range(g.dim()) if dim < leading or (operand.shape[dim - leading] == 1 and g.shape[dim] != 1)
    ]
    if not repeated:
        return g
    summed = g.sum(repeated, keepdim=True)
    return summed.reshape(operand.shape) if leading else summed


@rule(aten.add.Tensor, aten.add.Scalar)
def add(g: Tensor, out: Tensor, a: Operand, b: Operand, alpha: float = 1) -> tuple[Lazy, Lazy]:
    """a + alpha * b."""
    return unbroadcast(g, a), lambda: unbroadcast(g if alpha == 1 else alpha * g, b)


@rule(aten.sub.Tensor, aten.sub.Scalar)
def sub(g: Tensor, out: Tensor, a: Operand, b: Operand, alpha: float = 1) -> tuple[Lazy, Lazy]:
    """a - alpha * b."""
    return unbroadcast(g, a), lambda: unbroadcast(-alpha * g, b)


@rule(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(g: Tensor, out: Tensor, a: Tensor, b: Operand, alpha: float = 1) -> tuple[Lazy, Lazy]:
    """b - alpha * a."""
    return lambda: unbroadcast(-alpha * g, a), unbroadcast(g, b)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def mul(g: Tensor, out: Tensor, a: Operand, b: Operand) -> tuple[Lazy, Lazy]:
    """a * b."""
    return lambda: unbroadcast(g * b, a), lambda: unbroadcast(g * a, b)


@rule(aten.div.Tensor, aten.div.Scalar)
def div(g: Tensor, out: Tensor, a: Operand, b: Operand) -> tuple[Lazy, Lazy]:
    """a / b."""
    return lambda: unbroadcast(g / b, a), lambda: unbroadcast(-g * out / b, b)


@rule(aten.neg.default)
def neg(g: Tensor, out: Tensor, a: Tensor) -> tuple[Tensor]:
    """-a."""
    return (-g,)
