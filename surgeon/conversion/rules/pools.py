"""Pooling: the softened backward of max pooling, and average pools.

**Soft max pooling** (Satkiewicz 2025): the backward of p = sum_j w_j x_j with w = softmax(x / T) over each window, that
is g_j = w_j (1 + (x_j - p) / T) g. With y_j = (x_j - m) / T, m the window's maximum, S = sum_j e^y_j and
A = sum_j y_j e^y_j this is

    g_j = e^y_j (1 + y_j - A / S) g / S,

which loses no digits at small T, as x_j - p would, and overflows nowhere, since y <= 0. Windows are unfolded by a
depthwise convolution with one-hot kernels and folded by its adjoint. Explicitly padded positions take part with the
value 0, as in the reference; positions past them, which only ceil_mode reaches, do not take part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from surgeon.conversion.gates import BoundGate
from surgeon.conversion.rules.convolutions import Geometry, convolve, transposed_convolve
from surgeon.conversion.rules.registry import aten, rule
from surgeon.network.sizes import is_symbolic

_NEVER = -1e4
"""A value of y that stands for "not in this window": e^y is 0 in every precision, and y e^y too."""


@rule(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default, kind="pool")
def max_pool(
    g: tuple[Tensor | None, ...],
    out: tuple[Tensor, Tensor],
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    ceil_mode: bool = False,
    *,
    gate: BoundGate,
) -> tuple[Tensor]:
    """Soft: see the docstring of this module. Hard: the cotangent of a window goes to its first maximum."""
    cotangent, (values, indices) = g[0], out
    assert cotangent is not None
    axes = 3 if len(kernel) == 3 or x.dim() == 5 else 2
    if not gate.policy.uses_temperature:
        return (_scattered(cotangent, indices, x, axes),)
    geometry = Geometry.of(kernel, stride, padding, dilation, axes)
    windows = PoolWindows(x.shape[-axes:], values.shape[-axes:], geometry, ceil_mode)
    if x.dim() == axes + 1:  # no batch dimension
        pooled = windows.soft(cotangent[None], values[None], x[None], gate.inverse_temperature)
        return (pooled[0],)
    return (windows.soft(cotangent, values, x, gate.inverse_temperature),)


@rule(aten.adaptive_max_pool2d.default, kind="pool")
def global_max_pool(
    g: tuple[Tensor | None, ...], out: tuple[Tensor, Tensor], x: Tensor, output_size: Sequence[int], *, gate: BoundGate
) -> tuple[Tensor]:
    """Max pooling over a map of any size, as one window; `max_pool` pools maps of a known size."""
    cotangent, (values, indices) = g[0], out
    assert cotangent is not None and list(output_size) == [1, 1]
    if not gate.policy.uses_temperature:
        return (_scattered(cotangent, indices, x, 2),)
    return (_spread(_scaled(x, values, gate.inverse_temperature), cotangent, (-2, -1)),)


def _scattered(g: Tensor, indices: Tensor, x: Tensor, axes: int) -> Tensor:
    """g at the flat `indices` into the last axes of x, and zeros elsewhere."""
    # In float32, also for halves: windows overlap, and ONNX Runtime's CPU provider scatters no sums of halves.
    flat = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)).flatten(-axes)
    scattered = flat.scatter_add(-1, indices.flatten(-axes), g.flatten(-axes).to(flat.dtype))
    return scattered.reshape(x.shape).to(x.dtype)


def _scaled(x: Tensor, maximum: Tensor, inverse_temperature: Tensor) -> Tensor:
    """y = (x - m) / T."""
    y = (x - maximum) * inverse_temperature
    # In halves a distant value over a small T is minus infinity, and its y e^y no number.
    return y.clamp(min=_NEVER) if y.dtype == torch.float16 else y


def _spread(y: Tensor, g: Tensor, window: tuple[int, ...]) -> Tensor:
    """e^y (1 + y - A / S) g / S, where the dimensions `window` hold the elements of a window."""
    e = torch.exp(y)
    weighted = e * y
    total = e.sum(window, keepdim=True)
    share = g / total
    one = torch.ones((), dtype=y.dtype, device=y.device)  # a number would be recorded as an operator that ONNX lacks
    return e * (share * (one - weighted.sum(window, keepdim=True) / total)) + weighted * share


class PoolWindows:
    """The windows of a max pool: `out` of them, per axis, on an input of `size`."""

    def __init__(self, size: Sequence[int], out: Sequence[int], geometry: Geometry, ceil_mode: bool) -> None:
        self.size, self.out, self.geometry = list(size), list(out), geometry
        stride, padding, reach = geometry.stride, geometry.padding, geometry.reach
        # How far the last window reaches beyond the padded input, or at most does; positive only in ceil_mode.
        self.beyond = [
            (stride[a] - 1 if ceil_mode else 0)
            if is_symbolic(size[a])
            else max(0, (out[a] - 1) * stride[a] + reach[a] + 1 - size[a] - 2 * padding[a])
            for a in geometry.axes
        ]

    def soft(self, g: Tensor, values: Tensor, x: Tensor, inverse_temperature: Tensor) -> Tensor:
        """The softened backward. g and values: [N, C, out…]; x: [N, C, size…]; the result is shaped as x."""
        channels, count = x.shape[1], math.prod(self.geometry.kernel)
        places = torch.arange(count, device=x.device)
        zero, one = (torch.full((), value, dtype=x.dtype, device=x.device) for value in (0.0, 1.0))
        one_hot = torch.where(places.unsqueeze(1) == places, one, zero).reshape(count, 1, *self.geometry.kernel)
        kernels = one_hot.repeat(channels, *[1] * (len(self.size) + 1))
        maximum = values
        if any(self.geometry.padding):
            maximum = torch.maximum(values, self._padding_value(values))
        if any(self.beyond):
            widths = [width for amount in reversed(self.beyond) for width in (0, amount)]
            x_padded = functional.pad(x, widths)
        else:
            x_padded = x
        unfolded = convolve(x_padded, kernels, self.geometry, channels)
        if is_symbolic(*self.size) and any(self.beyond):
            for axis, length in enumerate(self.out):  # a window that would start in the padding is left out
                unfolded = unfolded.narrow(2 + axis, 0, length)
        windows = unfolded.reshape(-1, channels, count, *unfolded.shape[2:])
        y = _scaled(windows, maximum.unsqueeze(2), inverse_temperature)
        if any(self.beyond):
            y = torch.where(self._inside(x), y, _NEVER)
        spread = _spread(y, g.unsqueeze(2), (2,)).reshape(-1, channels * count, *unfolded.shape[2:])
        return transposed_convolve(spread, kernels, self.size, self.geometry, channels)

    def _positions(self, axis: int, like: Tensor) -> Tensor:
        """Input position of each kernel element of each window along one axis: [kernel, out], from -padding."""
        geometry = self.geometry
        starts = torch.arange(self.out[axis], device=like.device) * geometry.stride[axis] - geometry.padding[axis]
        return torch.arange(geometry.kernel[axis], device=like.device).unsqueeze(1) * geometry.dilation[axis] + starts

    def _inside(self, x: Tensor) -> Tensor:
        """Which unfolded positions lie in the padded input: bool, [count, out…]."""
        axes = len(self.size)
        inside = torch.ones([1] * 2 * axes, dtype=torch.bool, device=x.device)
        for axis in range(axes):
            ok = self._positions(axis, x) < self.size[axis] + self.geometry.padding[axis]
            shape = [1] * 2 * axes
            shape[axis], shape[axes + axis] = self.geometry.kernel[axis], self.out[axis]
            inside = torch.logical_and(inside, ok.reshape(shape))
        return inside.reshape(math.prod(self.geometry.kernel), *self.out)

    def _padding_value(self, values: Tensor) -> Tensor:
        """0 for windows that hold a padded position (it takes part with that value), very low elsewhere: [out…]."""
        axes, padding = len(self.size), self.geometry.padding
        touches = torch.zeros([1] * axes, dtype=torch.bool, device=values.device)
        for axis in range(axes):
            positions = self._positions(axis, values)
            behind = torch.logical_and(positions >= self.size[axis], positions < self.size[axis] + padding[axis])
            outside = torch.logical_or(positions < 0, behind)
            shape = [1] * axes
            shape[axis] = self.out[axis]
            touches = torch.logical_or(touches, outside.any(0).reshape(shape))
        low = torch.full((), torch.finfo(values.dtype).min, dtype=values.dtype, device=values.device)
        return torch.where(touches, torch.zeros_like(low), low)


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(
    g: Tensor,
    out: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Tensor]:
    """Each window's cotangent, divided as the forward pass divided its sum, to every position of the window.

    The divisor (as ATen has it): with start = o s - p and end = min(start + k, H + p) the window counts end - start
    positions with count_include_pad, and those of them inside [0, H) without; divisor_override goes before both.
    """
    axes = len(kernel)
    geometry = Geometry.of(kernel, stride, padding, 1, axes)
    kernel, size, out_size = geometry.kernel, x.shape[-axes:], out.shape[-axes:]
    batched = g if x.dim() == axes + 2 else g.unsqueeze(0)
    divisor = divisor_override or _divisor(g, size, out_size, geometry, ceil_mode, count_include_pad)
    share = batched / divisor
    apart = geometry.stride == kernel and not any(geometry.padding) and not is_symbolic(*size)
    if apart and all(out_size[a] * kernel[a] <= size[a] for a in range(axes)):
        return (_repeated(share, kernel, size).reshape(x.shape),)
    ones = torch.ones(1, 1, *kernel, dtype=g.dtype, device=g.device).expand(share.shape[1], 1, *kernel)
    return (transposed_convolve(share, ones, size, geometry, share.shape[1]).reshape(x.shape),)


def _divisor(
    g: Tensor, size: Sequence[int], out: Sequence[int], geometry: Geometry, ceil_mode: bool, count_include_pad: bool
) -> Tensor | int:
    """A number where all windows count alike, and otherwise a map, [out…]."""
    kernel, stride, padding = geometry.kernel, geometry.stride, geometry.padding
    whole = not ceil_mode or all(
        (out[a] - 1) * stride[a] + kernel[a] <= size[a] + 2 * padding[a] for a in geometry.axes
    )
    if whole and (count_include_pad or not any(padding)):
        return math.prod(kernel)
    divisor = torch.ones([1 for _ in size], dtype=g.dtype, device=g.device)
    for a in geometry.axes:
        start = torch.arange(out[a], device=g.device) * stride[a] - padding[a]
        end = (start + kernel[a]).clamp(max=size[a] + padding[a])
        counted = end - start if count_include_pad else end.clamp(max=size[a]) - start.clamp(min=0)
        shape = [1 for _ in size]
        shape[a] = out[a]
        divisor = divisor * counted.reshape(shape).to(g.dtype)
    return divisor


def _repeated(g: Tensor, times: Sequence[int], size: Sequence[int]) -> Tensor:
    """[N, C, out…], each element `times` over along each axis, and zeros behind, up to `size`."""
    g = functional.interpolate(g, scale_factor=[float(count) for count in times], mode="nearest")
    missing = [size[a] - g.shape[2 + a] for a in range(len(size))]
    return functional.pad(g, [width for m in reversed(missing) for width in (0, m)]) if any(missing) else g


@rule(
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten.adaptive_avg_pool1d.default,
)
def adaptive_avg_pool(g: Tensor, out: Tensor, x: Tensor, output_size: Sequence[int]) -> tuple[Tensor]:
    """Average over the cells floor(o H / O) to ceil((o + 1) H / O): one constant matrix per axis, transposed."""
    axes = len(output_size)
    for a in range(axes):
        dim = x.dim() - axes + a
        if is_symbolic(x.shape[dim]) or out.shape[dim] != x.shape[dim]:
            matrix = averages(x.shape[dim], out.shape[dim], g)
            g = (g.transpose(dim, -1) @ matrix).transpose(dim, -1)
    return (g,)


def averages(size: int, out: int, like: Tensor) -> Tensor:
    """[out, size]: row o holds the weights of the inputs that output o averages."""
    o = torch.arange(out, device=like.device).unsqueeze(1)
    i = torch.arange(size, device=like.device)
    start = torch.div(o * size, out, rounding_mode="floor")
    end = torch.div((o + 1) * size + out - 1, out, rounding_mode="floor")
    inside = ((i >= start) & (i < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)
