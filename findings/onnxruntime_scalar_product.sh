#!/usr/bin/env bash
# ONNX Runtime's CPU provider leaves its blocked layout for a product with a scalar, but not for one of equal shapes.
#
# Between convolutions the provider keeps tensors in blocks of channels (NCHWc). `a * b` of two blocked tensors of one
# shape stays in that layout; so does a product with a scalar that is a constant, which becomes part of the convolution.
# `a * s` with a scalar that is an input, a cheaper product, is computed outside: one more ReorderOutput, one more
# ReorderInput.
#
# Expected: the cheaper product costs no change of layout either.
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
    "nothing between two convolutions": ["ReorderInput", "Conv", "Conv", "ReorderOutput"],
    "a * b, b another convolution": ["ReorderInput", "Conv", "Conv", "Mul", "Conv", "ReorderOutput"],
    "a * 0.5, a constant": ["ReorderInput", "Conv", "Conv", "ReorderOutput"],
    "a * s, an input": ["ReorderInput", "Conv", "ReorderOutput", "Mul", "ReorderInput", "Conv", "ReorderOutput"],
}


def observe() -> dict[str, list[str]]:
    """The operators of what the provider makes of two convolutions with a product between them."""
    import numpy
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    shape = [1, 16, 32, 32]
    values = numpy.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(numpy.float32)
    half = numpy_helper.from_array(numpy.array(0.5, numpy.float32), "half")
    weights = [numpy_helper.from_array(values * (i + 1), f"w{i}") for i in range(3)]

    def convolution(source: str, weight: str, name: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, weight], [name], pads=[1, 1, 1, 1])

    def operators(*between: onnx.NodeProto) -> list[str]:
        nodes = [convolution("x", "w0", "a"), *between, convolution("product" if between else "a", "w1", "y")]
        read = {name for node in nodes for name in node.input}
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        if "s" in read:
            inputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        constants = [constant for constant in (*weights, half) if constant.name in read]
        graph = helper.make_graph(nodes, "product", inputs, [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = "optimised.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load("optimised.onnx").graph.node]

    seen = {
        "nothing between two convolutions": operators(),
        "a * b, b another convolution": operators(
            convolution("x", "w2", "b"), helper.make_node("Mul", ["a", "b"], ["product"])
        ),
        "a * 0.5, a constant": operators(helper.make_node("Mul", ["a", "half"], ["product"])),
        "a * s, an input": operators(helper.make_node("Mul", ["a", "s"], ["product"])),
    }
    if "ReorderInput" not in seen["nothing between two convolutions"]:
        raise SystemExit("ONNX Runtime has no blocked layout on this processor; x86 processors have one")
    return seen


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
