"""Gates at a temperature that does not change.

z times 1/T, which an artifact has to do with a tensor of 1/T, becomes a depthwise convolution by constants, and ONNX
Runtime makes one pass of it and the sigmoid behind it. Where z is a batch normalisation itself, z/T is another one of
the same tensor; ONNX Runtime then makes one pass of z and its activation too, since nobody else reads z.
"""

from __future__ import annotations

import numpy
from onnx import GraphProto, NodeProto, numpy_helper

from surgeon.runtime.tuning.graph_rewriter import GraphRewriter, attribute

TEMPERATURE = "temperature"


def fix_temperature(graph: GraphProto, temperature: float) -> dict[str, float]:
    """Make the input "temperature" of `graph` a constant, and say which values are 1/T.

    None are where there is no such input, or one for each gate: then it stays, as it does where nothing is 1/T.
    """
    port = next((port for port in graph.input if port.name == TEMPERATURE), None)
    inverse = [node for node in graph.node if node.op_type == "Reciprocal" and list(node.input) == [TEMPERATURE]]
    if port is None or port.type.tensor_type.shape.dim or not inverse:
        return {}
    graph.input.remove(port)
    default = next((initializer for initializer in graph.initializer if initializer.name == TEMPERATURE), None)
    if default is not None:
        graph.initializer.remove(default)
    value = numpy.array(temperature, numpy.float32)
    graph.initializer.append(numpy_helper.from_array(value, TEMPERATURE))
    return {node.output[0]: float(1 / value) for node in inverse}


def scale_by_constants(rewriter: GraphRewriter, node: NodeProto) -> bool:
    """z times a tensor that is one constant spread over z's shape."""
    if node.op_type != "Mul":
        return False
    for z, factor in (node.input, node.input[::-1]):
        value = _spread_constant(rewriter, factor)
        if value is not None and rewriter.is_image(z):
            scale = rewriter.constant(f"times/{value:.9g}", [[[[value]]]])
            maker = rewriter.makers.get(z)
            if maker is not None and maker.op_type == "BatchNormalization":
                _normalise_again(rewriter, maker, value, node)
            else:
                weights = rewriter.each(scale, rewriter.image(z)[1], 1, 1, node)
                rewriter.add("Conv", [z, weights], node.output[0], node, group=rewriter.image(z)[1])
            return True
    return False


def _normalise_again(rewriter: GraphRewriter, norm: NodeProto, value: float, node: NodeProto) -> None:
    """The result of `norm` times `value`, from its input."""
    factor = rewriter.constant(f"factor/{value:.9g}", [value])
    x, weight, bias, mean, variance = norm.input
    scaled = [
        rewriter.add("Mul", [parameter, factor], f"{node.output[0]}/{name}", node)
        for name, parameter in (("weight", weight), ("bias", bias))
    ]
    epsilon = attribute(norm, "epsilon", 1e-5)
    rewriter.add("BatchNormalization", [x, *scaled, mean, variance], node.output[0], node, epsilon=epsilon)


def _spread_constant(rewriter: GraphRewriter, tensor: str) -> float | None:
    """The 1/T of which `tensor` is made by expanding it to a plane, and that by a convolution with ones."""
    maker = rewriter.makers.get(tensor)
    plane = rewriter.makers.get(maker.input[0]) if maker is not None and maker.op_type == "Conv" else None
    return rewriter.inverse.get(plane.input[0]) if plane is not None and plane.op_type == "Expand" else None
