"""Convolutions and their adjoints, for one, two and three spatial dimensions.

With input x of size H, kernel w of size k, stride s, padding p and dilation d (per axis), a convolution is

    out[o] = sum over j < k of w[j] x[o s + j d - p],   o < O = floor((H + 2p - d (k - 1) - 1) / s) + 1,

so its adjoint is g_x[i] = sum over (o, j) with o s + j d - p = i of w[j] g[o]: a transposed convolution. From the start
of the padded input it has length F = (O - 1) s + d (k - 1) + 1, of which x holds the positions p to p + H; the
H + 2p - F positions at the end that no window reached (fewer than s) get zeros. At stride one it is again an ordinary
convolution, of g padded by d (k - 1) - p, with the kernel reversed and its input and output channels exchanged, which
every runtime computes as fast as the forward one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from surgeon.conversion.rules.arithmetic import Lazy
from surgeon.conversion.rules.registry import aten, rule
from surgeon.network.sizes import is_symbolic


def per_axis(value: Sequence[int] | int, axes: int) -> list[int]:
    """`value` for each of `axes` spatial axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def convolve(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """A plain convolution without bias. x: [N, C, spatial…]; weight: [K, C / groups, kernel…]."""
    out: Tensor = aten.convolution.default(
        x, weight, None, list(stride), list(padding), list(dilation), False, [0] * len(stride), groups
    )
    return out


def transposed_convolve(
    g: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The adjoint of `convolve(x, weight, ...)` at x of spatial `size`, applied to g; the shape of x.

    Windows may reach beyond the padded input, as they do in pools with ceil_mode: what falls there is dropped.
    """
    axes = len(size)
    kernel = weight.shape[2:]
    reach = [dilation[a] * (kernel[a] - 1) for a in range(axes)]
    if all(step == 1 for step in stride) and all(reach[a] >= padding[a] for a in range(axes)):
        around = [reach[a] - padding[a] for a in range(axes)]
        if all(g.shape[2 + a] + 2 * around[a] - reach[a] == size[a] for a in range(axes)):
            return convolve(g, _reversed_kernel(weight, groups), stride, around, dilation, groups)
    if is_symbolic(*size, *g.shape[2:]):
        return _cropped(g, weight, size, stride, padding, dilation, groups)
    unreached = [size[a] + 2 * padding[a] - (g.shape[2 + a] - 1) * stride[a] - reach[a] - 1 for a in range(axes)]
    fits = all(0 <= unreached[a] < stride[a] for a in range(axes))
    spread: Tensor = aten.convolution.default(
        g,
        weight,
        None,
        list(stride),
        list(padding) if fits else [0] * axes,
        list(dilation),
        True,
        unreached if fits else [0] * axes,
        groups,
    )
    if fits:
        return spread
    widths: list[int] = []
    for a in reversed(range(axes)):
        widths += [-padding[a], size[a] + padding[a] - spread.shape[2 + a]]
    return functional.pad(spread, widths)


def _cropped(
    g: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`transposed_convolve` where the size is known at runtime alone, and with it how much no window reached.

    With a zero behind g the result is longer than x at every size, and x's positions are cut out. (Output padding would
    do, but where it is just as long as x, a cut that changes nothing would not be recorded.)
    """
    axes = len(stride)
    spread: Tensor = aten.convolution.default(
        functional.pad(g, [0, 1] * axes),
        weight,
        None,
        list(stride),
        [0] * axes,
        list(dilation),
        True,
        [0] * axes,
        groups,
    )
    for a in range(axes):
        spread = spread.narrow(2 + a, padding[a], size[a])
    return spread


def _reversed_kernel(weight: Tensor, groups: int) -> Tensor:
    """[K, C / groups, kernel…] -> [C, K / groups, kernel…], each kernel back to front."""
    k, c, *kernel = weight.shape
    if groups == 1:
        weight = weight.transpose(0, 1)
    elif k != groups or c != 1:
        grouped = weight.reshape(groups, k // groups, c, *kernel).transpose(1, 2)
        weight = grouped.reshape(groups * c, k // groups, *kernel)
    axes = [2 + a for a, length in enumerate(kernel) if length > 1]
    return weight.flip(axes) if axes else weight


@rule(aten.convolution.default)
def convolution(
    g: Tensor,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[Lazy, None, Lazy]:
    """The adjoint for x, and the sum over all positions for the bias. Computed weights have no rule.

    A transposed convolution is the adjoint of an ordinary one, so its own adjoint is that ordinary one. Output padding
    of a stride or more (allowed where the dilation is longer) gives g room for further windows, which x does not have.
    """
    axes = x.dim() - 2
    stride, padding, dilation = (per_axis(value, axes) for value in (stride, padding, dilation))
    output_padding = per_axis(output_padding, axes)

    def at_input() -> Tensor:
        if transposed:
            pulled = convolve(g, weight, stride, padding, dilation, groups)
            for a in range(axes):
                if output_padding[a] >= stride[a]:
                    pulled = pulled.narrow(2 + a, 0, x.shape[2 + a])
            return pulled
        return transposed_convolve(g, weight, x.shape[2:], stride, padding, dilation, groups)

    return at_input, None, lambda: g.sum([0, *range(2, g.dim())])
