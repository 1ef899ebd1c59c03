"""Zeros around max pooling, written so that ONNX Runtime leaves them there."""

from __future__ import annotations

import numpy
from onnx import GraphProto, helper, numpy_helper

from surgeon.runtime.graphs import attribute, initializers


def keep_zero_padding(graph: GraphProto) -> None:
    """Pad in front of MaxPool with the smallest positive number, not with 0.

    ONNX Runtime (PadFusion, 1.17 to 1.31 at least) makes padding with 0 the pool's own, which is minus infinity: a
    window of negative values has another maximum then. It leaves other values alone.
    """
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    constants = initializers(graph)
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled:
            continue
        # The exporter states the value; ONNX Runtime leaves a computed one alone.
        value = constants.get(node.input[2]) if len(node.input) > 2 else None
        if attribute(node, "mode", b"constant") != b"constant" or value is None or numpy_helper.to_array(value).any():
            continue
        dtype = helper.tensor_dtype_to_np_dtype(value.data_type)
        name = f"{node.output[0]}/nearly_zero"
        graph.initializer.append(numpy_helper.from_array(numpy.array(numpy.finfo(dtype).tiny, dtype), name))
        node.input[2] = name
