"""Stride-one convolutions of 3 x 3 with 16 products in place of 36: backward ones, and forward ones if gates are soft.

Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray 2016, arXiv 1509.09308): along one axis, two neighbouring
outputs of a kernel w over four inputs d are

    y0 = m0 + m1 + m2,   y1 = m1 - m2 - m3,   with   m0 = (d0 - d2) w0,           m1 = (d1 + d2) (w0 + w1 + w2) / 2,
                                                     m2 = (d2 - d1) (w0 - w1 + w2) / 2,   m3 = (d1 - d3) w2,

and along two axes one such form in the other. ONNX Runtime's CPU provider convolves directly, at the speed of the
processor's multipliers, so only fewer products can save time. All is written in operators of its blocked layout: the
sums of inputs are depthwise convolutions of 2 x 2 elements and stride two, one for each of the 16 products; those
products are convolutions of one element; and y1 = y0 - ((m0 + m2) + (m2 + m3)) is interleaved with y0 by upsampling
and a mask. In float32 the result is within a few roundings of the direct one (relative L2 4e-7 in place of 2e-7). The
sums of kernels are constants, which ONNX Runtime folds when the session loads.
"""

from __future__ import annotations

import math

import numpy
from onnx import NodeProto

from surgeon.runtime.graphs import attribute
from surgeon.runtime.tuning.graph_rewriter import GraphRewriter
from surgeon.runtime.tuning.interleaving import between, whole

_KERNEL = numpy.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_TAPS = (((1, -1), 2, 0), ((1, 1), 1, 1), ((-1, 1), 1, 1), ((1, -1), 2, 1))
"""The two inputs of each product: their factors, the distance between them, and the place of the first one."""

_SUMS = (15, 215)
"""Cost of the sums for each pixel and input or output channel, in products of the same time (measured, AVX-512)."""

_KERNEL_READ = 150
"""Cost for each pair of channels: their kernels are 16/9 times larger, and take memory."""

_STARTED = 13_000_000
"""Cost of some 50 more operators on each of the threads, which wait for each other at every one of them.

A single thread counts as two: it would gain a percent from convolutions of middling size, which is not worth the memory
that their kernels and operators take (for DenseNet121, 8% of the peak).
"""


def winograd_3x3(rewriter: GraphRewriter, node: NodeProto) -> bool:
    """Rewrite `node` as above if it is such a convolution and large enough; return whether it is."""
    if not _applies(rewriter, node):
        return False
    tensor, weight, out = node.input[0], node.input[1], node.output[0]
    batch, channels, height, width = rewriter.image(tensor)
    outputs = rewriter.image(out)[1]
    tiles = (batch, outputs, math.ceil(height / 2), math.ceil(width / 2))

    # [K, C, 1, 9] x [9, 1] -> [K, C, 1, 1], sixteen times
    rows = rewriter.add("Reshape", [weight, rewriter.sizes(outputs, channels, 1, 9)], f"{out}/rows", node)

    def product(i: int, j: int) -> str:
        (down, apart_down, top), (right, apart_right, left) = _TAPS[i], _TAPS[j]
        kernel = rewriter.constant(f"winograd/{i}{j}", numpy.outer(down, right)[None, None])
        taken = rewriter.add(
            "Conv",
            [tensor, rewriter.each(kernel, channels, 2, 2, node)],
            f"{out}/taken{i}{j}",
            node,
            (batch, channels, *tiles[2:]),
            group=channels,
            strides=[2, 2],
            dilations=[apart_down, apart_right],
            pads=[
                1 - top,
                1 - left,
                max(0, 2 * tiles[2] - 2 + top + apart_down - height),
                max(0, 2 * tiles[3] - 2 + left + apart_right - width),
            ],
        )
        column = rewriter.constant(f"winograd/column{i}{j}", numpy.kron(_KERNEL[i], _KERNEL[j])[:, None])
        points = rewriter.add("MatMul", [rows, column], f"{out}/kernel{i}{j}", node)
        shift = node.input[2:] if (i, j) == (1, 1) else ()  # a bias added to y0 alone reaches all
        return rewriter.add("Conv", [taken, points, *shift], f"{out}/product{i}{j}", node, tiles)

    def pair(values: list[str], name: str) -> tuple[str, str]:
        """y0 and y0 - y1 of four products."""
        first, second, third, fourth = values
        ends = rewriter.add("Add", [first, third], f"{name}/ends", node, tiles)
        behind = rewriter.add("Add", [fourth, third], f"{name}/behind", node, tiles)
        even = rewriter.add("Add", [second, ends], f"{name}/even", node, tiles)
        return even, rewriter.add("Add", [behind, ends], f"{name}/less", node, tiles)

    columns = [pair([product(i, j) for i in range(4)], f"{out}/column{j}") for j in range(4)]
    halves = []
    for half in range(2):
        even, less = pair([column[half] for column in columns], f"{out}/half{half}")
        halves.append(between(rewriter, even, less, (1, 2), f"{out}/row{half}", node))
    whole(rewriter, (halves[0], halves[1]), (height, width), out, node)
    return True


def _applies(rewriter: GraphRewriter, node: NodeProto) -> bool:
    if node.op_type != "Conv" or not (rewriter.is_backward(node) or rewriter.soft):
        return False
    if not all(rewriter.is_constant(parameter) for parameter in node.input[1:]):
        return False
    geometry = {
        "kernel_shape": [3, 3],
        "strides": [1, 1],
        "pads": [1, 1, 1, 1],
        "dilations": [1, 1],
        "group": 1,
    }
    if any(attribute(node, name, None) != value for name, value in geometry.items()):
        return False
    if not (rewriter.is_image(node.input[0]) and rewriter.is_image(node.output[0])):
        return False
    _, outputs, height, width = rewriter.image(node.output[0])
    channels = rewriter.image(node.input[0])[1]
    pixels, pairs = height * width, channels * outputs
    saved = (9 * pixels - 16 * math.ceil(height / 2) * math.ceil(width / 2)) * pairs
    spent = (
        pixels * (_SUMS[0] * channels + _SUMS[1] * outputs) + _KERNEL_READ * pairs + _STARTED * max(2, rewriter.threads)
    )
    return saved >= 1.2 * spent
