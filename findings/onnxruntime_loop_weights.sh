#!/usr/bin/env bash
# ONNX Runtime's CPU provider convolves in its blocked layout inside a Loop only if the body itself holds the weight.
#
# A body may read initializers of the graph around it, and a weight that is used inside and outside stands in a file
# once, outside. Such a convolution is fused with its activation, but stays in the plain layout (NCHW); the same
# convolution, its weight among the body's own initializers, is computed in blocks of channels (NCHWc).
#
# Expected: a constant is a constant, whichever graph holds it.
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
    "weight in the body": ["nchwc ReorderInput", "nchwc Conv", "nchwc Conv", "nchwc ReorderOutput", "Identity"],
    "weight in the graph around it": ["FusedConv", "Conv", "Identity"],
}


def observe() -> dict[str, list[str]]:
    """The operators of what the provider makes of a Loop's body with two convolutions."""
    import numpy
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    shape = [1, 16, 32, 32]
    values = numpy.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(numpy.float32)
    weight = numpy_helper.from_array(values, "weight")

    def tensor(name: str, kind: int = TensorProto.FLOAT, size: list[int] | None = None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape if size is None else size)

    def operators(inside: bool) -> list[str]:
        nodes = [
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Conv", ["before", "weight"], ["between"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["between"], ["active"]),
            helper.make_node("Conv", ["active", "weight"], ["after"], pads=[1, 1, 1, 1]),
        ]
        inputs = [tensor("turn", TensorProto.INT64, []), tensor("going", TensorProto.BOOL, []), tensor("before")]
        outputs = [tensor("goes", TensorProto.BOOL, []), tensor("after")]
        body = helper.make_graph(nodes, "body", inputs, outputs, [weight] if inside else [])
        loop = helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)
        ports = [tensor("turns", TensorProto.INT64, []), tensor("x")]
        graph = helper.make_graph([loop], "loop", ports, [tensor("y")], [] if inside else [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = "optimised.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (made,) = (node for node in onnx.load("optimised.onnx").graph.node if node.op_type == "Loop")
        (made_body,) = (attribute.g for attribute in made.attribute if attribute.name == "body")
        blocked = {node.op_type: node.domain.endswith("nchwc") for node in made_body.node}
        return [f"nchwc {node.op_type}" if blocked[node.op_type] else node.op_type for node in made_body.node]

    return {"weight in the body": operators(True), "weight in the graph around it": operators(False)}


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
