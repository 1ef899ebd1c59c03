"""Gates at a temperature that does not change.

z times 1/T, which an artifact has to do with a tensor of 1/T, becomes a depthwise convolution by constants, and ONNX
Runtime makes one pass of it and the sigmoid behind it.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto, numpy_helper
import numpy

from surgeon.tuning.draft import Draft

TEMPERATURE = "temperature"


def fix_temperature(graph: GraphProto, temperature: float) -> bool:
    """Make the input "temperature" of `graph` a constant; False where there is none, or one for each gate."""
    port = next((port for port in graph.input if port.name == TEMPERATURE), None)
    if port is None or port.type.tensor_type.shape.dim:
        return False
    graph.input.remove(port)
    default = next((initializer for initializer in graph.initializer if initializer.name == TEMPERATURE), None)
    if default is not None:
        graph.initializer.remove(default)
    graph.initializer.append(numpy_helper.from_array(numpy.array(temperature, numpy.float32), TEMPERATURE))
    return True


def scale_by_constants(draft: Draft, node: NodeProto) -> bool:
    """z times a tensor that is one constant spread over z's shape."""
    if node.op_type != "Mul":
        return False
    for z, factor in (node.input, node.input[::-1]):
        value = _spread_constant(draft, factor)
        if value is not None and draft.is_image(z):
            weights = draft.each(value, draft.shapes[z][1], 1, 1, node)
            draft.add("Conv", [z, weights], node.output[0], node, group=draft.shapes[z][1])
            return True
    return False


def _spread_constant(draft: Draft, tensor: str) -> str | None:
    """The constant scalar of which `tensor` is made by expanding it to a plane, and that by a convolution with ones."""
    maker = draft.makers.get(tensor)
    if maker is None or maker.op_type != "Conv":
        return None
    plane = draft.makers.get(maker.input[0])
    if plane is None or plane.op_type != "Expand":
        return None
    scalar = draft.makers.get(plane.input[0])
    return plane.input[0] if scalar is not None and draft.is_constant(plane.input[0]) else None
