"""Zeros around max pooling, written so that ONNX Runtime leaves them there."""

from __future__ import annotations

import numpy
from onnx import GraphProto, helper, numpy_helper


def keep_zero_padding(graph: GraphProto) -> None:
    """Pad in front of MaxPool with the smallest positive number, not with 0.

    ONNX Runtime (PadFusion, 1.17 to 1.31 at least) makes padding with 0 the pool's own, which is minus infinity: a
    window of negative values has another maximum then. Of other values it keeps its hands off.
    """
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    constants = {initializer.name: initializer for initializer in graph.initializer}
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled:
            continue
        mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"constant")
        # The exporter states the value; one that is computed, ONNX Runtime leaves alone.
        given = constants.get(node.input[2]) if len(node.input) > 2 else None
        if mode != b"constant" or given is None or numpy_helper.to_array(given).any():
            continue
        dtype = helper.tensor_dtype_to_np_dtype(given.data_type)
        name = f"{node.output[0]}/nearly_zero"
        graph.initializer.append(numpy_helper.from_array(numpy.array(numpy.finfo(dtype).tiny, dtype), name))
        node.input[2] = name
