"""Interleave tensors in ONNX Runtime's blocked layout.

The blocked layout has no interleave operator; nearest-neighbour upsampling times a 0/1 mask emulates it.
"""

from __future__ import annotations

import numpy
from onnx import NodeProto

from surgeon.runtime.tuning.graph_rewriter import GraphRewriter


def upsampled(rewriter: GraphRewriter, tensor: str, times: tuple[int, int], output: str, like: NodeProto) -> str:
    """`tensor` [N, C, H, W], each element repeated `times` along H and W."""
    batch, channels, height, width = rewriter.image(tensor)
    return rewriter.add(
        "Resize",
        [tensor, "", rewriter.constant(f"scales/{times[0]}x{times[1]}", [1, 1, *times])],
        output,
        like,
        (batch, channels, height * times[0], width * times[1]),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def masked(
    rewriter: GraphRewriter,
    tensor: str,
    times: tuple[int, int],
    kept: tuple[int, int],
    value: float,
    output: str,
    like: NodeProto,
) -> str:
    """`tensor` times `value` where row and column are `kept` of each `times`, and zero elsewhere."""
    _, _, height, width = rewriter.image(tensor)
    plane = numpy.zeros((1, 1, height, width), numpy.float32)
    plane[:, :, kept[0] :: times[0], kept[1] :: times[1]] = value
    name = f"mask/{times[0]}x{times[1]}from{kept[0]}x{kept[1]}of{height}x{width}/{value:g}"
    mask = rewriter.spread(rewriter.constant(name, plane), rewriter.shapes[tensor], like)
    return rewriter.add("Mul", [tensor, mask], output, like, rewriter.shapes[tensor])


def between(rewriter: GraphRewriter, even: str, less: str, times: tuple[int, int], output: str, like: NodeProto) -> str:
    """`even` and `even` - `less`, alternating along the axis that is 2 in `times`."""
    twice = upsampled(rewriter, even, times, f"{output}/twice", like)
    repeated = upsampled(rewriter, less, times, f"{output}/repeated", like)
    second = (times[0] - 1, times[1] - 1)
    difference = masked(rewriter, repeated, times, second, -1.0, f"{output}/difference", like)
    return rewriter.add("Add", [twice, difference], output, like, rewriter.shapes[twice])


def whole(rewriter: GraphRewriter, halves: tuple[str, str], size: tuple[int, int], output: str, like: NodeProto) -> str:
    """The rows `halves`, alternating as in `between`, cropped to `size` where a last row or column is beyond it."""
    beyond = (size[0] % 2, size[1] % 2)
    if not any(beyond):
        return between(rewriter, *halves, (2, 1), output, like)
    larger = between(rewriter, *halves, (2, 1), f"{output}/larger", like)
    # A convolution without padding leaves off what its kernel reaches over.
    corner = numpy.zeros((1, 1, 1 + beyond[0], 1 + beyond[1]))
    corner[..., 0, 0] = 1
    channels = rewriter.image(larger)[1]
    weights = rewriter.each(
        rewriter.constant(f"corner/{beyond[0]}{beyond[1]}", corner), channels, *corner.shape[2:], like
    )
    batch, *_ = rewriter.shapes[larger]
    return rewriter.add("Conv", [larger, weights], output, like, (batch, channels, *size), group=channels)
