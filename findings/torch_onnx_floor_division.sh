#!/usr/bin/env bash
# torch.onnx rounds `//` of sizes towards zero, so `-(-n // 2)`, a half rounded up, is rounded down in the ONNX file.
#
# Python and torch.export round a quotient of sizes down. The exporter translates it to ONNX's Div of integers, which
# ONNX Runtime truncates. They differ where one of the two is negative and the quotient is no whole number. The export
# succeeds, and at the size that it was traced with, an even one, the file is right; at an odd one its result has another
# shape.
#
# Expected: the file computes what the module computes, at each size that `dynamic_shapes` frees.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 onnxscript==0.7.2 onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat > finding.py <<'END'
from __future__ import annotations

import json
import sys

RECORD = {
    "x[:, : -(-n // 2)], n = 6: columns in PyTorch and in ONNX": [3, 3],
    "x[:, : -(-n // 2)], n = 7: columns in PyTorch and in ONNX": [4, 3],
    "pad(x, (0, 5 + -n // 2)), n = 6: columns in PyTorch and in ONNX": [8, 8],
    "pad(x, (0, 5 + -n // 2)), n = 7: columns in PyTorch and in ONNX": [8, 9],
}


def observe() -> dict[str, list[int]]:
    """Columns of what two modules make of six and of seven columns, in PyTorch and as ONNX files."""
    import logging
    import warnings

    import numpy
    import onnxruntime
    import torch

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    class Half(torch.nn.Module):
        def forward(self, x):
            return x[:, : -(-x.shape[1] // 2)]

    class Padded(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.pad(x, (0, 5 + -x.shape[1] // 2))

    seen = {}
    for text, module in (("x[:, : -(-n // 2)]", Half()), ("pad(x, (0, 5 + -n // 2))", Padded())):
        free = ({1: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(module, (torch.ones(2, 6),), "module.onnx", dynamic_shapes=free, verbose=False)
        session = onnxruntime.InferenceSession("module.onnx", providers=["CPUExecutionProvider"])
        (name,) = (port.name for port in session.get_inputs())
        for columns in (6, 7):
            expected = module(torch.ones(2, columns)).shape[1]
            (result,) = session.run(None, {name: numpy.ones((2, columns), numpy.float32)})
            seen[f"{text}, n = {columns}: columns in PyTorch and in ONNX"] = [expected, result.shape[1]]
    return seen


if __name__ == "__main__":
    seen = json.loads(json.dumps(observe()))
    record = json.loads(json.dumps(RECORD))
    changed = [name for name in {**record, **seen} if seen.get(name) != record.get(name)]
    for name, value in seen.items():
        print(f"{name}: {value}")
    for name in changed:
        print(f"changed: {name} was {record.get(name)}")
    print("Changed" if changed else "As recorded, with torch==2.14.1, onnxscript==0.7.2, onnxruntime==1.31.1, onnx==1.23.2, numpy==2.4.6")
    sys.exit(bool(changed))
END
venv/bin/python -E -s finding.py
