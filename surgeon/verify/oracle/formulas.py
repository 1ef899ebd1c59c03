"""The pullback's formulas by autograd, slow and obvious on purpose. Source: arXiv 2507.22832."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from surgeon.conversion.gates import gate
from surgeon.verify.oracle.activations import Activation

Formula = Callable[[Activation, Tensor, Tensor, float, bool], Tensor]
"""(activation, pre-activation, cotangent, T, whether both edges soften) -> cotangent of the pre-activation."""


def soft_gate(activation: Activation, z: Tensor, g: Tensor, temperature: float, both: bool) -> Tensor:
    """(s + (1 - s) sigmoid((z - lower) / T)) g; with `both`, or no lower edge, times sigmoid((upper - z) / T)."""
    opening = torch.ones_like(z)
    if activation.lower is not None:
        opening = opening * torch.sigmoid((z - activation.lower) / temperature)
    if activation.upper is not None and (both or activation.lower is None):
        opening = opening * torch.sigmoid((activation.upper - z) / temperature)
    return activation.slope * g + (1 - activation.slope) * opening * g


def guided_gate(activation: Activation, z: Tensor, g: Tensor, temperature: float = 1.0, both: bool = False) -> Tensor:
    """Give s g + (1 - s) 1[open] 1[g > 0] g, where autograd decides what is open."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        (ordinary,) = torch.autograd.grad(activation.plain(leaf), leaf, g)
    shut = activation.slope * g
    return shut + (ordinary - shut) * (g > 0)


def deconvnet_gate(
    activation: Activation, z: Tensor, g: Tensor, temperature: float = 1.0, both: bool = False
) -> Tensor:
    """Give s g + (1 - s) 1[g > 0] g, open or shut."""
    return activation.slope * g + (1 - activation.slope) * g * (g > 0)


FORMULAS: dict[str, Formula] = {"soft": soft_gate, "guided": guided_gate, "deconvnet": deconvnet_gate}
"""The formulas of gate policies, written down a second time; the hard gate is autograd's own derivative."""


def pass_gate(policy: str, activation: Activation, z: Tensor, g: Tensor, temperature: float, both: bool) -> Tensor:
    """The cotangent of `z` under the gate policy of that name; `both` softens both edges of a clamp.

    A policy without a formula here is computed by the definition in its own class, edge by edge: verification then
    compares how the artifacts find, place and compose the gates, and takes the policy at its word.
    """
    if policy in FORMULAS:
        return FORMULAS[policy](activation, z, g, temperature, both)
    definition, inverse_temperature = gate(policy), torch.tensor(1 / temperature, dtype=z.dtype, device=z.device)
    passed = g
    if activation.lower is not None:
        passed = definition.through(z - activation.lower, passed, inverse_temperature)
    if activation.upper is not None and (both or activation.lower is None or not definition.uses_temperature):
        passed = definition.through(activation.upper - z, passed, inverse_temperature)
    return activation.slope * g + (1 - activation.slope) * passed


def soft_pool(
    x: Tensor,
    output_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    temperature: float,
) -> Tensor:
    """Softmax-weighted pooling of the last axes: p = sum_j w_j x_j, w = softmax(x / T) over each window.

    Padded positions take part as 0, as in the reference; positions beyond them, which only ceil mode reaches, do not.
    """
    axes = range(x.dim() - len(kernel), x.dim())
    windows, taking_part = x, torch.ones_like(x, dtype=torch.bool)
    for axis, p in zip(axes, padding, strict=True):
        windows, taking_part = _extend(windows, axis, p, p, 0), _extend(taking_part, axis, p, p, True)
    for axis, size, k, s, d in zip(axes, output_size, kernel, stride, dilation, strict=True):
        beyond = max((size - 1) * s + (k - 1) * d + 1 - windows.shape[axis], 0)
        windows, taking_part = _extend(windows, axis, 0, beyond, 0), _extend(taking_part, axis, 0, beyond, False)
    for axis, size, k, s, d in zip(axes, output_size, kernel, stride, dilation, strict=True):
        places = torch.arange(size, device=x.device)[:, None] * s + torch.arange(k, device=x.device) * d
        # The axis of the window's elements goes last, so that the axes still to be cut keep their numbers.
        windows = windows.index_select(axis, places.flatten()).unflatten(axis, (size, k)).movedim(axis + 1, -1)
        taking_part = taking_part.index_select(axis, places.flatten()).unflatten(axis, (size, k)).movedim(axis + 1, -1)
    values = windows.flatten(-len(kernel))
    # A network may pad by -inf before it pools.
    takes_part = taking_part.flatten(-len(kernel)) & (values != float("-inf"))
    values = values.masked_fill(~takes_part, 0)
    weights = (values / temperature).masked_fill(~takes_part, float("-inf")).softmax(-1)
    return (weights * values).sum(-1)


def soft_pool_vjp(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    temperature: float,
) -> Tensor:
    """g_{x_j} = w_j (1 + (x_j - p) / T) g, summed over the windows that hold j: autograd of `soft_pool`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        pooled = soft_pool(leaf, tuple(g.shape[-len(kernel) :]), kernel, stride, padding, dilation, temperature)
        (gradient,) = torch.autograd.grad(pooled, leaf, g)
    return gradient


def soft_cells_vjp(x: Tensor, g: Tensor, outs: Sequence[int], temperature: float) -> Tensor:
    """`soft_pool_vjp` of adaptive pooling to `outs`, whose cell o of O holds the positions o H / O to (o + 1) H / O."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        pooled = []
        for cell in itertools.product(*map(range, outs)):
            window = leaf
            for axis, (o, out) in enumerate(zip(cell, outs, strict=True), x.dim() - len(outs)):
                start, end = o * x.shape[axis] // out, -(-(o + 1) * x.shape[axis] // out)
                window = window.narrow(axis, start, end - start)
            values = window.flatten(-len(outs))
            pooled.append(((values / temperature).softmax(-1) * values).sum(-1))
        (gradient,) = torch.autograd.grad(torch.stack(pooled, -1).unflatten(-1, outs), leaf, g)
    return gradient


def _extend(x: Tensor, axis: int, before: int, after: int, value: float | bool) -> Tensor:
    def block(length: int) -> Tensor:
        return x.new_full((*x.shape[:axis], length, *x.shape[axis + 1 :]), value)

    return torch.cat([block(before), x, block(after)], axis)
