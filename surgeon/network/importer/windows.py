"""Convolutions and pools over one to three spatial axes, with different paddings before and after."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import operator
from surgeon.network.sizes import is_same, is_symbolic

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@dataclass(frozen=True)
class WindowGeometry:
    """Geometry along the spatial axes in torch's terms; `begin` and `end` are paddings."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    begin: list[int]
    end: list[int]

    @property
    def symmetric(self) -> bool:
        return all(is_same(before, after) for before, after in zip(self.begin, self.end, strict=True))

    def padding(self) -> list[int]:
        """Paddings in the order of F.pad, the last axis first."""
        pairs = zip(reversed(self.begin), reversed(self.end), strict=True)
        return [side for pair in pairs for side in pair]


def windows(x: Tensor, kernel: Sequence[int], strides: Any, pads: Any, dilations: Any, auto_pad: str) -> WindowGeometry:
    """A node's attributes with their defaults, and `auto_pad` resolved."""
    axes = x.dim() - 2
    if not 1 <= axes <= 3:
        raise ConversionError(f"{axes} spatial axes", "PyTorch has one to three")
    stride, dilation = list(strides or [1] * axes), list(dilations or [1] * axes)
    begin, end = [0] * axes, [0] * axes
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        for i, (size, k, s, d) in enumerate(zip(x.shape[2:], kernel, stride, dilation, strict=True)):
            total = (size + s - 1) // s * s - size + (k - 1) * d + 1 - s
            if (k - 1) * d + 1 < s:  # only then, since TorchScript has no max of two symbols
                total = max(total, 0)
            begin[i] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            end[i] = total - begin[i]
    elif auto_pad == "NOTSET" and pads:
        begin, end = list(pads[:axes]), list(pads[axes:])
    return WindowGeometry(list(kernel), stride, dilation, begin, end)


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    w = windows(x, weight.shape[2:], strides, pads, dilations, auto_pad)
    convolution = CONVOLUTIONS[x.dim() - 3]
    if w.symmetric:
        return convolution(x, weight, bias, w.stride, w.begin, w.dilation, group)
    return convolution(F.pad(x, w.padding()), weight, bias, w.stride, 0, w.dilation, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Paddings crop the result: `begin` rows at its beginning, `end` at its end.

    It is as large as it is where `auto_pad` wants more, as ONNX Runtime has it.
    """
    w = windows(x, weight.shape[2:], strides, pads, dilations, "VALID" if auto_pad.startswith("SAME") else auto_pad)
    axes = x.dim() - 2
    extra = list(output_padding or [0] * axes)
    sizes = list(x.shape[2:])
    fitted = output_shape is None and auto_pad.startswith("SAME")
    if fitted:
        output_shape = [size * s for size, s in zip(sizes, w.stride, strict=True)]
    if output_shape is not None:
        for i, wanted in enumerate(output_shape[-axes:]):
            total = (sizes[i] - 1) * w.stride[i] + extra[i] + (w.kernel[i] - 1) * w.dilation[i] + 1 - wanted
            if not fitted:
                extra[i] += max(-total, 0)
            total = max(total, 0)
            w.begin[i] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            w.end[i] = total - w.begin[i]
    transposed = TRANSPOSED[axes - 1]
    if w.symmetric:
        return transposed(x, weight, bias, w.stride, w.begin, extra, group, w.dilation)
    whole = transposed(x, weight, bias, w.stride, 0, extra, group, w.dilation)
    return F.pad(whole, [-side for side in w.padding()])


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> tuple[Tensor]:
    """The indices, a second output, are not supported.

    Padding that is the same before and after at every size is torch's; any other takes no part in a soft pool, so that
    it does not depend on the size whether it does.
    """
    w = windows(x, kernel_shape, strides, pads, dilations, auto_pad)
    pool = MAX_POOLS[x.dim() - 3]
    fitted = auto_pad.startswith("SAME") and any(stride != 1 for stride in w.stride)
    if w.symmetric and not (fitted and any(is_symbolic(side) or side for side in w.begin)):
        return (pool(x, w.kernel, w.stride, w.begin, w.dilation, bool(ceil_mode)),)
    behind = not ceil_mode and not is_symbolic(*x.shape[2:]) and not any(w.begin)
    if behind and _count(x, w, False) == _count(x, w, True):
        return (pool(x, w.kernel, w.stride, 0, w.dilation, True),)
    # Finite, and far from overflow: the soft pool multiplies it by zero.
    lowest = -1e30 if torch.finfo(x.dtype).max > 1e38 else torch.finfo(x.dtype).min / 2
    return (pool(F.pad(x, w.padding(), value=lowest), w.kernel, w.stride, 0, w.dilation, bool(ceil_mode)),)


def _count(x: Tensor, w: WindowGeometry, ceil: bool) -> list[int]:
    """The number of windows along each axis: with the padding at the end, or in torch's ceil mode without it."""
    counts = []
    for i, size in enumerate(x.shape[2:]):
        extent = (w.kernel[i] - 1) * w.dilation[i] + 1
        if not ceil:
            counts.append((size + w.end[i] - extent) // w.stride[i] + 1)
            continue
        last = math.ceil((size - extent) / w.stride[i])
        if last * w.stride[i] >= size:
            return []
        counts.append(last + 1)
    return counts


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    w = windows(x, kernel_shape, strides, pads, dilations, auto_pad)
    pool: Callable[[Tensor], Tensor]
    if any(dilation != 1 for dilation in w.dilation):
        pool = functools.partial(_dilated_average, w=w, ceil=bool(ceil_mode))
    elif w.symmetric:
        return AVERAGE_POOLS[x.dim() - 3](x, w.kernel, w.stride, w.begin, bool(ceil_mode), bool(count_include_pad))
    else:
        pool = functools.partial(
            AVERAGE_POOLS[x.dim() - 3], kernel_size=w.kernel, stride=w.stride, ceil_mode=bool(ceil_mode)
        )
    mean = pool(F.pad(x, w.padding()))
    if count_include_pad:
        return mean
    return mean / pool(F.pad(torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype), w.padding()))


def _dilated_average(x: Tensor, w: WindowGeometry, ceil: bool) -> Tensor:
    """A depthwise convolution with a constant kernel: PyTorch has no such pool."""
    if ceil:
        raise ConversionError("a dilated average pool in ceil mode", "Pad it instead")
    kernel = torch.full([x.shape[1], 1, *w.kernel], 1 / math.prod(w.kernel), dtype=x.dtype)
    return CONVOLUTIONS[x.dim() - 3](x, kernel, None, w.stride, 0, w.dilation, x.shape[1])


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The p-norm over each window; zero padding does not change it."""
    if ceil_mode:
        raise ConversionError("an Lp pool in ceil mode", "Pad it instead")
    w = windows(x, kernel_shape, strides, pads, dilations, auto_pad)
    mean = _dilated_average(F.pad(x.abs().pow(p), w.padding()), w, False)
    return (mean * math.prod(kernel_shape)).pow(1 / p)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return torch.linalg.vector_norm(x, p, list(range(2, x.dim())), keepdim=True)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """A max pool with a single window."""
    return MAX_POOLS[x.dim() - 3](x, list(x.shape[2:]))
