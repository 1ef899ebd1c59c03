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
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from surgeon.conversion.rules.arithmetic import Lazy
from surgeon.conversion.rules.registry import aten, rule
from surgeon.network.sizes import is_symbolic


def per_axis(value: Sequence[int] | int, axes: int) -> list[int]:
    """`value` for each of `axes` spatial axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


@dataclass(frozen=True)
class Geometry:
    """How the windows of a convolution or a pool lie on their input: one number per spatial axis in each list."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    @classmethod
    def of(
        cls,
        kernel: Sequence[int] | int,
        stride: Sequence[int] | int,
        padding: Sequence[int] | int,
        dilation: Sequence[int] | int,
        axes: int,
    ) -> Geometry:
        """The geometry that an operator's arguments describe; without a stride, the kernel's size is the stride."""
        stride = kernel if isinstance(stride, Sequence) and not stride else stride
        return cls(*(per_axis(value, axes) for value in (kernel, stride, padding, dilation)))

    @property
    def axes(self) -> range:
        """The spatial axes, counted from the first of them."""
        return range(len(self.kernel))

    @property
    def reach(self) -> list[int]:
        """How far the last element of a window lies from its first: d (k - 1)."""
        return [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]


def convolve(
    x: Tensor, weight: Tensor, geometry: Geometry, groups: int, output_padding: list[int] | None = None
) -> Tensor:
    """A plain convolution without bias; transposed where it has an `output_padding`.

    x: [N, C, spatial…]; weight: [K, C / groups, kernel…].
    """
    transposed, extra = output_padding is not None, output_padding or [0 for _ in geometry.axes]
    out: Tensor = aten.convolution.default(
        x, weight, None, geometry.stride, geometry.padding, geometry.dilation, transposed, extra, groups
    )
    return out


def transposed_convolve(g: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry, groups: int) -> Tensor:
    """The adjoint of `convolve(x, weight, ...)` at x of spatial `size`, applied to g; the shape of x.

    Windows may reach beyond the padded input, as they do in pools with ceil_mode; positions there are dropped.
    """
    axes, stride, padding, reach = geometry.axes, geometry.stride, geometry.padding, geometry.reach
    if all(step == 1 for step in stride) and all(reach[a] >= padding[a] for a in axes):
        around = [reach[a] - padding[a] for a in axes]
        if all(g.shape[2 + a] + 2 * around[a] - reach[a] == size[a] for a in axes):
            return convolve(g, _reversed_kernel(weight, groups), replace(geometry, padding=around), groups)
    if is_symbolic(*size, *g.shape[2:]):
        return _cropped(g, weight, size, geometry, groups)
    unreached = [size[a] + 2 * padding[a] - (g.shape[2 + a] - 1) * stride[a] - reach[a] - 1 for a in axes]
    if all(0 <= unreached[a] < stride[a] for a in axes):
        return convolve(g, weight, geometry, groups, unreached)
    none = [0 for _ in axes]
    spread = convolve(g, weight, replace(geometry, padding=none), groups, none)
    widths: list[int] = []
    for a in reversed(axes):
        widths += [-padding[a], size[a] + padding[a] - spread.shape[2 + a]]
    return functional.pad(spread, widths)


def _cropped(g: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry, groups: int) -> Tensor:
    """`transposed_convolve` where the size, and with it how much no window reaches, is known at runtime alone.

    With a zero behind g the result is longer than x at every size, and x's positions are cut out. (Output padding would
    do, but where it is just as long as x, a cut that changes nothing would not be recorded.)
    """
    none = [0 for _ in geometry.axes]
    spread = convolve(functional.pad(g, [0, 1] * len(none)), weight, replace(geometry, padding=none), groups, none)
    for a in geometry.axes:
        spread = spread.narrow(2 + a, geometry.padding[a], size[a])
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
    """The adjoint for x, and the sum over all positions for the bias. Weights that depend on the input have no rule.

    A transposed convolution is the adjoint of an ordinary one, so its own adjoint is that ordinary one. Output padding
    of a stride or more (allowed where the dilation is longer) gives g room for further windows, which x does not have.
    """
    axes = x.dim() - 2
    geometry, extra = Geometry.of(weight.shape[2:], stride, padding, dilation, axes), per_axis(output_padding, axes)

    def at_input() -> Tensor:
        if not transposed:
            return transposed_convolve(g, weight, x.shape[2:], geometry, groups)
        pulled = convolve(g, weight, geometry, groups)
        for a in geometry.axes:
            if extra[a] >= geometry.stride[a]:
                pulled = pulled.narrow(2 + a, 0, x.shape[2 + a])
        return pulled

    return at_input, None, lambda: g.sum([0, *range(2, g.dim())])
