"""Values put between others, in the layout of ONNX Runtime's convolutions.

Nothing there does that, but nearest-neighbour upsampling repeats values, and a product with a mask of ones and zeros
leaves one of each.
"""

from __future__ import annotations

import numpy
from onnx import NodeProto

from surgeon.tuning.draft import Draft, Shape, attribute


def upsampled(draft: Draft, tensor: str, times: tuple[int, int], output: str, like: NodeProto) -> str:
    """`tensor` [N, C, H, W], each element repeated `times` along H and W."""
    scales = draft.constant(f"scales/{times[0]}x{times[1]}", [1, 1, *times])
    return draft.add(
        "Resize",
        [tensor, "", scales],
        output,
        like,
        repeated_shape(draft.shapes[tensor], times),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def masked(
    draft: Draft, tensor: str, times: tuple[int, int], kept: tuple[int, int], value: float, output: str, like: NodeProto
) -> str:
    """`tensor` times `value` where row and column are `kept` of each `times`, and zero elsewhere."""
    _, _, height, width = draft.shapes[tensor]
    assert isinstance(height, int) and isinstance(width, int)
    plane = numpy.zeros((1, 1, height, width), numpy.float32)
    plane[:, :, kept[0] :: times[0], kept[1] :: times[1]] = value
    name = f"mask/{times[0]}x{times[1]}from{kept[0]}x{kept[1]}of{height}x{width}/{value:g}"
    mask = draft.spread(draft.constant(name, plane), draft.shapes[tensor], like)
    return draft.add("Mul", [tensor, mask], output, like, draft.shapes[tensor])


def repeated_shape(shape: Shape, times: tuple[int, int]) -> Shape:
    batch, channels, height, width = shape
    assert isinstance(height, int) and isinstance(width, int)
    return batch, channels, height * times[0], width * times[1]


def interleave_strided_adjoint(draft: Draft, node: NodeProto) -> bool:
    """A strided convolution's adjoint, if depthwise or of one element: zeros are put between, then it convolves.

    A transposed convolution of few products is slow, leaves the layout, and on several cores takes longer than on one
    (ONNX Runtime 1.31).
    """
    if node.op_type != "ConvTranspose" or not draft.is_constant(node.input[1]) or len(node.input) > 2:
        return False
    g, out = node.input[0], node.output[0]
    if not (draft.is_image(g) and draft.is_image(out)):
        return False
    channels, groups = draft.shapes[g][1], attribute(node, "group", 1)
    kernel, stride = attribute(node, "kernel_shape", []), attribute(node, "strides", [])
    depthwise = groups == channels == draft.shapes[out][1]
    point = groups == 1 and list(kernel) == [1, 1]
    if list(stride) != [2, 2] or not (depthwise or point) or any(d != 1 for d in attribute(node, "dilations", [1])):
        return False
    if depthwise and max(kernel) > 7:
        return False
    pads = attribute(node, "pads", [0, 0, 0, 0])
    weight, times = node.input[1], (2, 2)
    if point:
        turned = draft.add("Transpose", [weight], f"{out}/weight", node, perm=[1, 0, 2, 3])
        batch, _, *size = draft.shapes[g]
        g = draft.add("Conv", [g, turned], f"{out}/apart", node, (batch, draft.shapes[out][1], *size))
    zeros = masked(draft, upsampled(draft, g, times, f"{out}/up", node), times, (0, 0), 1.0, f"{out}/zeros", node)
    around = _around(draft, zeros, out, kernel, pads)
    if point:
        kernel_name = draft.constant("times/1", [[[[1.0]]]])
        flipped = draft.each(kernel_name, draft.shapes[out][1], 1, 1, node)
    else:
        flipped = _flipped(draft, weight, f"{out}/flipped", node)
    if point and not any(around):
        draft.add("Identity", [zeros], out, node)
    else:
        draft.add("Conv", [zeros, flipped], out, node, group=draft.shapes[out][1], pads=around)
    return True


def _around(draft: Draft, zeros: str, out: str, kernel: list[int], pads: list[int]) -> list[int]:
    """The padding of the convolution with the flipped kernel: out[i] = sum_j w[k - 1 - j] zeros[i + j - (k - 1 - p)]."""
    before = [kernel[a] - 1 - pads[a] for a in range(2)]
    behind = []
    for a in range(2):
        size, wanted = draft.shapes[zeros][2 + a], draft.shapes[out][2 + a]
        assert isinstance(size, int) and isinstance(wanted, int)
        behind.append(wanted - 1 + kernel[a] - before[a] - size)
    return [*before, *behind]


def _flipped(draft: Draft, weight: str, output: str, like: NodeProto) -> str:
    """Kernels back to front."""
    ends = draft.constant("flip/from", [-1, -1], numpy.int64)
    begins = draft.constant("flip/to", [numpy.iinfo(numpy.int64).min + 1] * 2, numpy.int64)
    axes = draft.constant("flip/axes", [2, 3], numpy.int64)
    return draft.add("Slice", [weight, ends, begins, axes, ends], output, like)
