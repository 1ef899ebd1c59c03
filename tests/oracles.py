"""Slow rules, number by number, straight from the formulas of the paper (arXiv 2507.22832) and its rivals.

Nothing here imports surgeon or uses autograd. z is a pre-activation, g the cotangent of the activation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

aten = torch.ops.aten


def sigmoid(value: float) -> float:
    """1 / (1 + e^-value), which overflows nowhere."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


def opened(policy: str, z: float, g: float, temperature: float) -> float:
    """What passes a ReLU of pre-activation z."""
    if policy == "soft":
        return sigmoid(z / temperature) * g
    if policy == "hard":
        return g if z > 0 else 0.0
    if policy == "guided":
        return g if z > 0 and g > 0 else 0.0
    assert policy == "deconvnet"
    return g if g > 0 else 0.0


def between(
    policy: str, z: float, g: float, temperature: float, low: float | None, high: float | None, edges: str
) -> float:
    """What passes min(max(z, low), high); the upper edge softens with `edges` "both", or where it is the only one."""
    if policy == "soft":
        factor = 1.0 if low is None else sigmoid((z - low) / temperature)
        if high is not None and (edges == "both" or low is None):
            factor *= sigmoid((high - z) / temperature)
        return factor * g
    inside = (low is None or z > low) and (high is None or z < high)
    return opened(policy, 1.0 if inside else -1.0, g, temperature)


def sloped(policy: str, z: float, g: float, temperature: float, slope: float) -> float:
    """LeakyReLU: the slope's share always passes, the rest through the gate."""
    return slope * g + (1 - slope) * opened(policy, z, g, temperature)


def activation(
    operator: object, policy: str, z: Tensor, g: Tensor, temperature: float, edges: str, *options: object
) -> Tensor:
    """The cotangent of z for one of the gated operators; `options` are its further arguments."""
    slopes = itertools.repeat(0.0)
    if operator is aten.prelu.default:
        slope = options[0]
        assert isinstance(slope, Tensor)
        channel = (z.cumsum(1) * 0 + torch.arange(z.shape[1]).reshape(-1, *[1] * (z.dim() - 2))).long()
        slopes = iter(slope.expand(z.shape[1])[channel.flatten()].tolist())
    if operator is aten.clamp.Tensor:
        result = torch.empty_like(z)
        spread = [edge.expand(z.shape) if isinstance(edge, Tensor) else None for edge in options]
        for at in itertools.product(*map(range, z.shape)):
            low, high = (*(None if edge is None else edge[at].item() for edge in spread), None)[:2]
            result[at] = between(policy, z[at].item(), g[at].item(), temperature, low, high, edges)
        return result
    found = []
    for a, b, s in zip(z.flatten().tolist(), g.flatten().tolist(), slopes, strict=False):
        if operator is aten.relu.default:
            found.append(opened(policy, a, b, temperature))
        elif operator is aten.threshold.default:
            found.append(opened(policy, a - float(options[0]), b, temperature))  # type: ignore[arg-type]
        elif operator in (aten.hardtanh.default, aten.clamp.default):
            low, high = (*options, None)[:2] if options else (-1.0, 1.0)
            found.append(between(policy, a, b, temperature, low, high, edges))  # type: ignore[arg-type]
        elif operator is aten.leaky_relu.default:
            found.append(sloped(policy, a, b, temperature, options[0] if options else 0.01))  # type: ignore[arg-type]
        else:
            assert operator is aten.prelu.default
            found.append(sloped(policy, a, b, temperature, s))
    return torch.tensor(found, dtype=z.dtype).reshape(z.shape)


def soft_max_pool(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    temperature: float,
) -> Tensor:
    """g_j = w_j (1 + (x_j - p) / T) g over each window, w its softmax at T and p = sum w_j x_j.

    Padded positions are in the window with the value 0; those beyond them, which ceil mode reaches, are not in it.
    """
    axes = len(kernel)
    size, flat_x, flat_g = x.shape[-axes:], x.reshape(-1, *x.shape[-axes:]), g.reshape(-1, *g.shape[-axes:])
    result = torch.zeros_like(flat_x)
    for plane, start in itertools.product(range(len(flat_x)), itertools.product(*map(range, g.shape[-axes:]))):
        values, places = [], []
        for offset in itertools.product(*map(range, kernel)):
            at = [start[a] * stride[a] + offset[a] * dilation[a] - padding[a] for a in range(axes)]
            if any(at[a] >= size[a] + padding[a] for a in range(axes)):
                continue
            inside = all(0 <= at[a] < size[a] for a in range(axes))
            values.append(flat_x[plane][tuple(at)].item() if inside else 0.0)
            places.append(tuple(at) if inside else None)
        top = max(values)
        weights = [math.exp((value - top) / temperature) for value in values]
        total = sum(weights)
        pooled = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
        for weight, value, place in zip(weights, values, places, strict=True):
            if place is not None:
                share = weight / total * (1 + (value - pooled) / temperature)
                result[plane][place] += share * flat_g[plane][start]
    return result.reshape(x.shape)


def soft_max_pool_of(operator: object, args: Sequence[object], g: Tensor, temperature: float) -> Tensor:
    """`soft_max_pool` for the arguments of one of the max pools, options left out or not."""
    x = args[0]
    assert isinstance(x, Tensor)
    whole = operator is aten.adaptive_max_pool2d.default
    kernel, *options = [list(x.shape[2:])] if whole else args[1:]
    assert isinstance(kernel, list)
    usual = [kernel, [0] * len(kernel), [1] * len(kernel)]
    stride, padding, dilation = (*options[:3], *usual[len(options[:3]) :])
    return soft_max_pool(x.detach(), g, kernel, stride, padding, dilation, temperature)
