#!/usr/bin/env bash
# ONNX Runtime turns padding with 0 in front of MaxPool into padding with minus infinity: other values, no warning.
#
# ONNX says what both operators do: Pad writes zeros, which then take part in the maximum, while MaxPool's own `pads`
# never win. Level-1 optimisation (on by default) nonetheless moves the zeros of a Pad into the `pads` of the MaxPool
# behind it. A window of negative values then has a negative maximum, where the file says 0. With another constant,
# however small, the Pad stays. AveragePool, for which the move is right, is shown for comparison.
#
# Expected: the same values at every level of optimisation.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat > finding.py <<'END'
from __future__ import annotations

import json
import sys

RECORD = {
    "MaxPool behind Pad with 0, not optimised": [0, 0, 0, 0],
    "MaxPool behind Pad with 0, optimised": [-1, -1, -1, -1],
    "MaxPool behind Pad with 1e-30, optimised": [0, 0, 0, 0],
    "AveragePool behind Pad with 0, not optimised": [-0.25, -0.25, -0.25, -0.25],
    "AveragePool behind Pad with 0, optimised": [-0.25, -0.25, -0.25, -0.25],
}


def observe() -> dict[str, list[float]]:
    """Pool windows of one −1 and three padded places, with and without optimisation."""
    import numpy
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    levels = onnxruntime.GraphOptimizationLevel
    image = -numpy.ones((1, 1, 2, 2), numpy.float32)

    def pooled(operator: str, value: float, level: object) -> list[float]:
        shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])
        constants = [
            numpy_helper.from_array(numpy.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"),
            numpy_helper.from_array(numpy.array(value, numpy.float32), "value"),
        ]
        nodes = [
            helper.make_node("Pad", ["x", "pads", "value"], ["padded"]),
            helper.make_node(operator, ["padded"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        graph = helper.make_graph(nodes, "pool", [shape], [result], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": image})[0].ravel().round(6).tolist()

    return {
        "MaxPool behind Pad with 0, not optimised": pooled("MaxPool", 0, levels.ORT_DISABLE_ALL),
        "MaxPool behind Pad with 0, optimised": pooled("MaxPool", 0, levels.ORT_ENABLE_ALL),
        "MaxPool behind Pad with 1e-30, optimised": pooled("MaxPool", 1e-30, levels.ORT_ENABLE_ALL),
        "AveragePool behind Pad with 0, not optimised": pooled("AveragePool", 0, levels.ORT_DISABLE_ALL),
        "AveragePool behind Pad with 0, optimised": pooled("AveragePool", 0, levels.ORT_ENABLE_ALL),
    }


if __name__ == "__main__":
    seen = json.loads(json.dumps(observe()))
    record = json.loads(json.dumps(RECORD))
    changed = [name for name in {**record, **seen} if seen.get(name) != record.get(name)]
    for name, value in seen.items():
        print(f"{name}: {value}")
    for name in changed:
        print(f"changed: {name} was {record.get(name)}")
    print("Changed" if changed else "As recorded, with onnxruntime==1.31.1, onnx==1.23.2, numpy==2.4.6")
    sys.exit(bool(changed))
END
venv/bin/python -E -s finding.py
