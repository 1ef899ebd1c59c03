"""Convolutions with few output channels, such as the last one of a pullback, which gives an image's three channels.

ONNX Runtime's CPU provider computes whole blocks of 16 channels, and would throw 13 of them away. With the kernel's
elements as channels (im2col of the output) the blocks are full: a convolution of one element computes them, and a
transposed convolution by ones adds each of them up at its place.
"""

from __future__ import annotations

import numpy
from onnx import NodeProto

from surgeon.runtime.graphs import attribute
from surgeon.runtime.tuning.graph_rewriter import BLOCK, GraphRewriter


def im2col_narrow_conv(rewriter: GraphRewriter, node: NodeProto) -> bool:
    """Rewrite `node` as above if it is such a convolution, backward, and return whether it is."""
    if (
        node.op_type != "Conv"
        or not rewriter.is_backward(node)
        or len(node.input) > 2
        or not rewriter.is_constant(node.input[1])
    ):
        return False
    tensor, weight, out = node.input[0], node.input[1], node.output[0]
    shape = rewriter.shapes.get(out, ())
    kernel, pads = attribute(node, "kernel_shape", []), attribute(node, "pads", [])
    if not rewriter.is_image(tensor) or len(shape) != 4 or not isinstance(shape[1], int) or not 0 < shape[1] < BLOCK:
        return False
    outputs = shape[1]
    ones = {"strides": [1, 1], "dilations": [1, 1], "group": 1}
    if len(kernel) != 2 or len(pads) != 4 or any(attribute(node, name, None) != one for name, one in ones.items()):
        return False
    count = kernel[0] * kernel[1]
    filled = -(-outputs * count // BLOCK) * BLOCK
    if filled >= BLOCK * count or any(pads[a] != pads[a + 2] or pads[a] > kernel[a] - 1 for a in range(2)):
        return False
    batch, channels, *size = rewriter.image(tensor)
    turned = rewriter.add("Transpose", [weight], f"{out}/turned", node, perm=[0, 2, 3, 1])
    points = rewriter.add("Reshape", [turned, rewriter.sizes(outputs * count, channels, 1, 1)], f"{out}/points", node)
    apart = rewriter.add("Conv", [tensor, points], f"{out}/apart", node, (batch, outputs * count, *size))
    # out[i] = sum_j apart[j][i + j - p] is the transposed convolution with element j at place k - 1 - j.
    places = numpy.eye(count, dtype=numpy.float32)[::-1].reshape(count, 1, *kernel)
    folding = rewriter.constant(f"places/{outputs}x{kernel[0]}x{kernel[1]}", numpy.tile(places, (outputs, 1, 1, 1)))
    around = [kernel[a % 2] - 1 - pad for a, pad in enumerate(pads)]
    rewriter.add("ConvTranspose", [apart, folding], out, node, group=outputs, pads=around)
    return True
