"""Decompositions of composite operators into operators that have pullback rules, gates and pools among them.

Each function takes the operator's own arguments. It returns NotImplemented for arguments that it cannot decompose: the
operator then stays in the graph, and is refused by name if it has no rule. Other operators are decomposed by PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch._export import utils
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from surgeon.conversion.rules.convolutions import Geometry, transposed_convolve
from surgeon.conversion.rules.pools import averages
from surgeon.network.sizes import is_same, is_symbolic

aten = torch.ops.aten


def adaptive_max_pool2d(x: Tensor, output_size: Sequence[int]) -> Any:
    """Max pooling over cells of one size; cells of different sizes are copied out and padded to the largest."""
    return _pooled_cells(x, output_size, aten.max_pool2d_with_indices)


def adaptive_max_pool3d(x: Tensor, output_size: Sequence[int]) -> Any:
    """As `adaptive_max_pool2d`, in three dimensions."""
    return _pooled_cells(x, output_size, aten.max_pool3d_with_indices)


def _pooled_cells(x: Tensor, output_size: Sequence[int], pool: Callable[..., Any]) -> Any:
    kernel, axes = _cells(x, output_size), len(output_size)
    if kernel:
        return pool(x, kernel)
    sizes = x.shape[-axes:]
    if is_symbolic(*sizes):
        return NotImplemented
    taken, real = [], torch.ones([1] * axes, dtype=torch.bool, device=x.device)
    for a, (size, out) in enumerate(zip(sizes, output_size, strict=True)):
        kernel.append(max(-(-(o + 1) * size // out) - o * size // out for o in range(out)))
        o = torch.arange(out, device=x.device).unsqueeze(1)
        places = o * size // out + torch.arange(kernel[-1], device=x.device)
        inside = places < ((o + 1) * size + out - 1) // out
        real = real & inside.reshape([-1 if dim == a else 1 for dim in range(axes)])
        taken.append(places.clamp(max=size - 1).flatten())
        x = x.index_select(a - axes, taken[-1])
    # Finite: the soft pool multiplies excluded values by zero, and infinity times zero is NaN.
    lowest = max(torch.finfo(x.dtype).min, -1e30)
    values, indices = pool(torch.where(real, x, lowest), kernel)
    return values, _source_indices(sizes, taken, indices)


def _source_indices(sizes: Sequence[int], taken: list[Tensor], indices: Tensor) -> Tensor:
    """Flat indices into a tensor of `sizes`, for flat `indices` into its copy that takes `taken` along each axis."""
    flat, step = torch.zeros_like(indices), 1
    for size, places in zip(reversed(sizes), reversed(taken), strict=True):
        flat = flat + step * places[indices % len(places)]
        indices, step = indices // len(places), step * size
    return flat


def _cells(x: Tensor, output_size: Sequence[int]) -> list[int]:
    """Size of the cells along each axis; empty where cells differ in size, or may."""
    sizes = x.shape[-len(output_size) :]
    if is_symbolic(*sizes):
        return []
    divided = all(size % out == 0 for size, out in zip(sizes, output_size, strict=True))
    return [size // out for size, out in zip(sizes, output_size, strict=True)] if divided else []


def adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Any:
    """As `adaptive_avg_pool3d` for a free size; the ONNX exporter itself decomposes the operator for a fixed one."""
    return _averaged(x, output_size) if is_symbolic(*x.shape[-2:]) else NotImplemented


def adaptive_avg_pool3d(x: Tensor, output_size: Sequence[int]) -> Any:
    """Average pooling over cells of one size, or a product with a matrix along each axis: ONNX has no operator."""
    kernel = _cells(x, output_size)
    return aten.avg_pool3d(x, kernel) if kernel else _averaged(x, output_size)


def _averaged(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """The product with the matrix of averages along each axis; the matrix is constant for a fixed size."""
    for dim, out in zip(range(-len(output_size), 0), output_size, strict=True):
        if str(x.shape[dim]) != str(out):  # comparing symbols themselves would specialise them
            x = (x.transpose(dim, -1) @ averages(x.shape[dim], out, x).t()).transpose(dim, -1)
    return x


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """A transposed convolution to a free size, cut out of a larger one: ONNX takes output padding as a constant."""
    if not transposed or not is_symbolic(*output_padding):
        return NotImplemented
    geometry = Geometry.of(weight.shape[2:], stride, padding, dilation, x.dim() - 2)
    size = [
        (length - 1) * geometry.stride[a] - 2 * geometry.padding[a] + geometry.reach[a] + output_padding[a] + 1
        for a, length in enumerate(x.shape[2:])
    ]
    spread = transposed_convolve(x, weight, size, geometry, groups)
    return spread if bias is None else spread + bias.reshape(-1, *[1] * len(size))


def as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Any:
    """A reshape and a permutation, for a view that reads every element of a tensor without gaps exactly once.

    Both shapes are brought into memory order, outermost first; dimensions of size one may have any stride.
    """
    before, after = _memory_order(x.shape, x.stride()), _memory_order(size, stride)
    if offset or before is None or after is None or x.numel() != _product(size):
        return NotImplemented
    memory = x.permute(before).reshape([size[dim] for dim in after])
    return memory.permute(sorted(range(len(after)), key=after.__getitem__))


def _memory_order(size: Sequence[int], stride: Sequence[int]) -> list[int] | None:
    """The dimensions from the largest stride to the smallest, size one first; None where there are gaps."""
    single = [isinstance(length, int) and length == 1 for length in size]  # comparing a symbol would specialise it
    order = sorted(range(len(size)), key=lambda dim: (not single[dim], -stride[dim]))
    step = 1
    for dim in reversed(order):
        if not single[dim] and stride[dim] != step:
            return None
        step = step * size[dim]
    return order


def _product(size: Sequence[int]) -> int:
    product = 1
    for length in size:
        product = product * length
    return product


def cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    """sum a b / (max(|a|, eps) max(|b|, eps)). The clamps that keep norms from zero are no gates."""
    norms = [aten.linalg_vector_norm(value, 2, [dim], True).clamp(min=eps) for value in (a, b)]
    return ((a / norms[0]) * (b / norms[1])).sum(dim)


def bilinear_antialiased(x: Tensor, size: Sequence[int], align: bool, *scales: float | None) -> Tensor:
    """A product with a constant matrix along each axis: ONNX's antialiased Resize takes no scale of its own."""
    return _filtered(x, size, align, scales, lambda t: (1 - t).clamp(min=0), 1)


def bicubic_antialiased(x: Tensor, size: Sequence[int], align: bool, *scales: float | None) -> Tensor:
    """As `bilinear_antialiased`, with Keys' cubic filter at a = -1/2."""

    def cubic(t: Tensor) -> Tensor:
        near, far = (1.5 * t - 2.5) * t * t + 1, ((2.5 - 0.5 * t) * t - 4) * t + 2
        return torch.where(t < 1, near, far) * (t < 2)

    return _filtered(x, size, align, scales, cubic, 2)


def _filtered(
    x: Tensor,
    size: Sequence[int],
    align: bool,
    scales: Sequence[float | None],
    weight: Callable[[Tensor], Tensor],
    reach: int,
) -> Tensor:
    """Along each axis, output o averages the inputs i by weight(|i + 1/2 - (o + 1/2) r| / max(r, 1)).

    r is the ratio of the lengths of input and output. With aligned corners PyTorch uses another ratio, but the same
    positions.
    """
    for axis, out in enumerate(size):
        length, scale = x.shape[2 + axis], scales[axis] if len(scales) > axis else None
        ratio = ((length - 1) / (out - 1) if out > 1 else 0.0) if align else 1 / scale if scale else length / out
        wide = max(ratio, 1.0)
        i = torch.arange(length, device=x.device, dtype=x.dtype)
        o = torch.arange(out, device=x.device, dtype=x.dtype).unsqueeze(1)
        places = (i + 0.5 - (o + 0.5) * ratio) / wide
        weights = weight(places.abs())
        matrix = weights / weights.sum(1, keepdim=True)
        x = matrix @ x if axis == 0 else x @ matrix.t()
    return x


def cdist(a: Tensor, b: Tensor, p: float, compute_mode: int | None = None) -> Any:
    """The norm of the difference of every pair of rows."""
    return aten.linalg_vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, [-1])


def cumprod(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """Products with the values 1, 2, 4, … positions before: autograd's own backward branches on zeros in the data."""
    size, reach = x.shape[dim] if x.dim() else 1, 1
    if is_symbolic(size) or dtype is not None:
        return NotImplemented
    while reach < size:
        head, rest = x.split([reach, size - reach], dim)
        x = torch.cat([head, rest * x.narrow(dim, 0, size - reach)], dim)
        reach *= 2
    return x


def prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """The product of the two halves, recursively."""
    size = x.shape[dim] if x.dim() else 0
    if is_symbolic(size) or dtype is not None or not size:
        return NotImplemented
    while size > 1:
        half, odd = size // 2, size % 2
        halves = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([halves, x.narrow(dim, size - 1, 1)], dim) if odd else halves
        size = half + odd
    return x if keepdim else x.squeeze(dim)


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Every (columns + 1)-th element of the flattened matrix."""
    dims = [dim % x.dim() for dim in (dim1, dim2)]
    rows, columns = (x.shape[dim] for dim in dims)
    length = min(rows + min(offset, 0), columns - max(offset, 0))
    if is_symbolic(rows, columns) or length < 1:
        return NotImplemented
    matrix = x.permute([dim for dim in range(x.dim()) if dim not in dims] + dims).flatten(-2)
    places = torch.arange(length, device=x.device) * (columns + 1) + max(offset, 0) - columns * min(offset, 0)
    return matrix.index_select(-1, places)


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th of the sorted values."""
    if is_symbolic(k):
        return NotImplemented
    ordered = (part.narrow(dim, k - 1, 1) for part in torch.sort(x, dim=dim))
    return tuple(part if keepdim else part.squeeze(dim) for part in ordered)


def median(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The middle of the sorted values, the lower of two."""
    return kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Any:
    """The sum of a b c over `sumdim`, each factor with new dimensions of size one, as in `nn.Bilinear`."""
    for dims in zip_longest(sorted(expand1), sorted(expand2), sorted(expand3)):
        a, b, c = (x if dim is None else x.unsqueeze(dim) for x, dim in zip((a, b, c), dims, strict=True))
    return (a * b * c).sum(list(sumdim))


def rrelu(
    x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Any:
    """LeakyReLU with the mean slope, in evaluation mode."""
    return NotImplemented if training else (aten.leaky_relu(x, (lower + upper) / 2), noise)


@contextmanager
def operators_listed_once() -> Iterator[None]:
    """A context in which PyTorch looks its C++ operators up once.

    Every decomposition asks for them once for each namespace, some sixty times, which is a third of the time that
    capturing a small network takes.
    """
    lookup = utils._materialize_cpp_cia_ops
    utils._materialize_cpp_cia_ops = functools.cache(lookup)
    try:
        yield
    finally:
        utils._materialize_cpp_cia_ops = lookup


class EvenChunks(TorchFunctionMode):
    """chunk(x, n) = tensor_split(x, n) where n divides a symbolic size, such as a doubled batch.

    chunk rounds the quotient up, which makes torch.export fix the batch.
    """

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call in (torch.chunk, Tensor.chunk):
            x, count, dim = _chunked(*args, **kwargs or {})
            if is_symbolic(x.shape[dim]) and statically_known_true(x.shape[dim] % count == 0):
                return x.tensor_split(count, dim)
        return call(*args, **kwargs or {})


class GlobalPools(TorchFunctionMode):
    """max_pool2d(x, (H, W)) = adaptive_max_pool2d(x, 1) for a free size, and likewise for averages.

    torch.export takes a kernel's size for a constant, and would fix the input's size.
    """

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        whole = _WHOLE.get(call)
        pooled = NotImplemented if whole is None else whole(*args, **kwargs or {})
        return call(*args, **kwargs or {}) if pooled is NotImplemented else pooled


def _whole_maximum(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    whole = _is_whole(input, kernel_size, padding) and dilation in (1, (1, 1), [1, 1])
    if not whole:
        return NotImplemented
    values, indices = functional.adaptive_max_pool2d(input, 1, return_indices=True)
    return (values, indices) if return_indices else values


def _whole_average(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    whole = _is_whole(input, kernel_size, padding) and divisor_override is None
    return functional.adaptive_avg_pool2d(input, 1) if whole else NotImplemented


def _is_whole(x: Tensor, kernel: Any, padding: Any) -> bool:
    """Whether the window covers a whole map of free size."""
    pair = isinstance(kernel, (tuple, list)) and len(kernel) == 2 and is_symbolic(*kernel)
    return pair and all(map(is_same, kernel, x.shape[-2:])) and padding in (0, (0, 0), [0, 0])


_WHOLE: dict[Any, Callable[..., Any]] = {
    functional.max_pool2d: _whole_maximum,
    functional.avg_pool2d: _whole_average,
}


def _chunked(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, int, int]:
    return input, chunks, dim


DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten._cdist_forward.default: cdist,
    aten._upsample_bicubic2d_aa.default: bicubic_antialiased,
    aten._upsample_bilinear2d_aa.default: bilinear_antialiased,
    aten._trilinear.default: trilinear,
    aten._adaptive_avg_pool3d.default: adaptive_avg_pool3d,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    aten.adaptive_max_pool3d.default: adaptive_max_pool3d,
    aten.as_strided.default: as_strided,
    aten.convolution.default: convolution,
    aten.cosine_similarity.default: cosine_similarity,
    aten.cumprod.default: cumprod,
    aten.diagonal.default: diagonal,
    aten.kthvalue.default: kthvalue,
    aten.median.dim: median,
    aten.prod.dim_int: prod,
    aten.rrelu_with_noise_functional.default: rrelu,
}
