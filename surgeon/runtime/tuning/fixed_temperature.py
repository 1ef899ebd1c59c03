"""Gates at a fixed temperature.

An artifact multiplies z by a tensor of 1/T. At a fixed T that is a depthwise convolution by constants, which ONNX
Runtime computes in one pass with the sigmoid behind it. Where z is the result of a batch normalisation, z/T becomes a
second normalisation of the same tensor; ONNX Runtime then fuses z with its activation too, since nobody else reads z.
"""

from __future__ import annotations

import numpy
from onnx import GraphProto, NodeProto, numpy_helper

from surgeon.runtime.graphs import attribute
from surgeon.runtime.tuning.graph_rewriter import GraphRewriter

TEMPERATURE = "temperature"


def fix_temperature(graph: GraphProto, temperature: float) -> dict[str, float]:
    """Replace the input "temperature" of `graph` by a constant; return the values that equal 1/T.

    The graph stays as it is, and nothing is returned, where the input is missing or has an entry for each gate, or
    where no value is 1/T.
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
    """Rewrite `node` if it multiplies z by a constant broadcast to z's shape; return whether it does."""
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
    """The 1/T that is broadcast to `tensor` by an expansion to a plane and a convolution with ones; None for others."""
    maker = rewriter.makers.get(tensor)
    plane = rewriter.makers.get(maker.input[0]) if maker is not None and maker.op_type == "Conv" else None
    return rewriter.inverse.get(plane.input[0]) if plane is not None and plane.op_type == "Expand" else None
