"""Adjoints of convolutions with stride two, as sub-pixel convolutions instead of a transposed one.

A transposed convolution leaves the blocked layout, is slow where little is multiplied, and can take longer on several
cores than on one (ONNX Runtime 1.31). The adjoint of out[o] = sum_j w[j] x[2 o + j - p] is

    x[i] = sum of w[j] out[(i + p - j) / 2] over the j for which i + p - j is even,

so that every other i has every other element of w (the sub-pixel form of Shi et al. 2016, arXiv 1609.07009): four
ordinary convolutions, whose results are interleaved. Where each input has only one product, zeros are put between the
cotangents first: convolving those costs less than interleaving four results.
"""

from __future__ import annotations

import math

import numpy
from onnx import NodeProto

from surgeon.runtime.graphs import attribute
from surgeon.runtime.tuning.graph_rewriter import GraphRewriter
from surgeon.runtime.tuning.interleaving import between, masked, upsampled, whole

_TWICE = (2, 2)
_CHANNELS = 64
"""Fewest channels of a cotangent for which four convolutions and their interleaving cost less (measured)."""


def subpixel_conv_transpose(rewriter: GraphRewriter, node: NodeProto) -> bool:
    """Rewrite `node`, and a crop behind it, as above if it is such an adjoint; return whether it is."""
    if node.op_type != "ConvTranspose" or not rewriter.is_backward(node) or len(node.input) > 2:
        return False
    g, weight = node.input
    kernel, stride = attribute(node, "kernel_shape", []), attribute(node, "strides", [])
    if not rewriter.is_constant(weight) or not rewriter.is_image(g) or len(kernel) != 2 or list(stride) != [2, 2]:
        return False
    if list(attribute(node, "dilations", [1, 1])) != [1, 1]:
        return False
    result, cut = rewriter.cut_behind(node.output[0])
    if not rewriter.is_image(result):
        return False
    pads = attribute(node, "pads", [0, 0, 0, 0])
    padding = (pads[0] + cut[0], pads[1] + cut[1])
    rewriter.done.add(result)
    groups, channels, outputs = attribute(node, "group", 1), rewriter.image(g)[1], rewriter.image(result)[1]
    if groups == channels == outputs:
        done = _depthwise(rewriter, node, padding, kernel, result)
    elif groups == 1 and list(kernel) == [1, 1]:
        done = _point(rewriter, node, padding, result)
    elif groups == 1 and channels >= _CHANNELS:
        done = _four(rewriter, node, padding, kernel, result)
    else:
        done = False
    if not done or result == node.output[0]:
        rewriter.done.remove(result)
    return done


def _depthwise(
    rewriter: GraphRewriter, node: NodeProto, padding: tuple[int, int], kernel: list[int], result: str
) -> bool:
    g, weight = node.input
    _, channels, *size = rewriter.image(g)
    wanted = rewriter.image(result)[2:]
    before = [kernel[a] - 1 - padding[a] for a in range(2)]
    behind = [wanted[a] - 1 + kernel[a] - before[a] - 2 * size[a] for a in range(2)]
    if min(*before, *behind) < 0:
        return False
    zeros = _with_zeros(rewriter, g, result, node)
    ends = rewriter.constant("flip/from", [-1, -1], numpy.int64)
    begins = rewriter.constant("flip/to", [numpy.iinfo(numpy.int64).min + 1] * 2, numpy.int64)
    axes = rewriter.constant("flip/axes", [2, 3], numpy.int64)
    flipped = rewriter.add("Slice", [weight, ends, begins, axes, ends], f"{result}/flipped", node)
    rewriter.add("Conv", [zeros, flipped], result, node, group=channels, pads=[*before, *behind])
    return True


def _point(rewriter: GraphRewriter, node: NodeProto, padding: tuple[int, int], result: str) -> bool:
    g, weight = node.input
    batch, _, *size = rewriter.image(g)
    _, channels, *wanted = rewriter.image(result)
    if any(padding) or wanted != [2 * size[0], 2 * size[1]]:
        return False
    turned = rewriter.add("Transpose", [weight], f"{result}/weight", node, perm=[1, 0, 2, 3])
    apart = rewriter.add("Conv", [g, turned], f"{result}/apart", node, (batch, channels, *size))
    up = upsampled(rewriter, apart, _TWICE, f"{result}/up", node)
    masked(rewriter, up, _TWICE, (0, 0), 1.0, result, node)
    return True


def _with_zeros(rewriter: GraphRewriter, tensor: str, name: str, node: NodeProto) -> str:
    up = upsampled(rewriter, tensor, _TWICE, f"{name}/up", node)
    return masked(rewriter, up, _TWICE, (0, 0), 1.0, f"{name}/zeros", node)


def _four(rewriter: GraphRewriter, node: NodeProto, padding: tuple[int, int], kernel: list[int], result: str) -> bool:
    g, weight = node.input
    batch, _, *size = rewriter.image(g)
    _, channels, *wanted = rewriter.image(result)
    half = [math.ceil(length / 2) for length in wanted]
    # Along each axis, for even and for odd positions: the first element of w, how many, and the padding on both sides.
    parts = []
    for a in range(2):
        for off in range(2):
            first = (off + padding[a]) % 2
            count = len(range(first, kernel[a], 2))
            shift = (off + padding[a] - first) // 2
            parts.append((first, count, count - 1 - shift, half[a] + shift - size[a]))
    if any(count < 1 or before < 0 or behind < 0 for _, count, before, behind in parts):
        return False
    turned = rewriter.add("Transpose", [weight], f"{result}/weight", node, perm=[1, 0, 2, 3])
    negative = rewriter.add("Neg", [turned], f"{result}/negative", node)
    steps = rewriter.constant("flip/steps", [-2, -2], numpy.int64)
    axes = rewriter.constant("flip/axes", [2, 3], numpy.int64)

    def part(down: int, right: int) -> str:
        (top, tall, above, below), (left, wide, before, behind) = parts[down], parts[2 + right]
        starts = rewriter.sizes(top + 2 * (tall - 1), left + 2 * (wide - 1))
        ends = rewriter.sizes(*(numpy.iinfo(numpy.int64).min + 1 if first == 0 else 0 for first in (top, left)))
        signed = turned if down == right else negative
        kernel_part = rewriter.add("Slice", [signed, starts, ends, axes, steps], f"{result}/kernel{down}{right}", node)
        pads = [above, before, below, behind]
        return rewriter.add(
            "Conv", [g, kernel_part], f"{result}/part{down}{right}", node, (batch, channels, *half), pads=pads
        )

    # `between` takes a value and how much smaller the next one is: with the signs of `part`, that is a sum everywhere.
    rows = []
    for row in range(2):
        even, odd = part(row, 0), part(row, 1)
        less = rewriter.add("Add", [odd, even], f"{result}/less{row}", node, rewriter.shapes[even])
        rows.append(between(rewriter, even, less, (1, 2), f"{result}/row{row}", node))
    less = rewriter.add("Add", rows, f"{result}/less", node, rewriter.shapes[rows[0]])
    whole(rewriter, (rows[0], less), (wanted[0], wanted[1]), result, node)
    return True
