#!/usr/bin/env bash
# ONNX Runtime's memory pattern, on by default, makes the second run of a session take twice the memory of the first.
#
# The first run of a shape takes its buffers from the arena one by one and records them. For the second, ONNX Runtime
# lays them out as one block, and takes that block beside what the arena holds from the first run, which it never gives
# back. So a session that is measured in one run needs twice as much from the next run on. `enable_mem_pattern = False`
# avoids that.
#
# Expected: the arena serves the second run from what the first left free.
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
    "second peak over first, default": 2.0,
    "third peak over first, default": 2.0,
    "second peak over first, enable_mem_pattern = False": 1.0,
    "third peak over first, enable_mem_pattern = False": 1.0,
}


def observe() -> dict[str, float]:
    """Peaks of memory after one, two and three runs, without what the process had before."""
    import json
    import subprocess
    import sys
    from pathlib import Path

    program = "import finding as own, json, sys; print(json.dumps(own.peaks(sys.argv[1] == 'on')))"
    seen = {}
    for name, state in (("default", "on"), ("enable_mem_pattern = False", "off")):
        # A process for each, since a peak never goes down.
        environment = {"PYTHONPATH": str(Path.cwd())}
        done = subprocess.run([sys.executable, "-c", program, state], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        first, second, third = json.loads(done.stdout.splitlines()[-1])
        seen[f"second peak over first, {name}"] = round(second / first, 1)
        seen[f"third peak over first, {name}"] = round(third / first, 1)
    return seen


def peaks(pattern: bool) -> list[float]:
    """Megabytes that three runs have taken, of a graph that keeps six results of 64 MB until they are summed."""
    import resource
    import sys

    import numpy
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    nodes, last = [], "x"
    for i in range(6):
        nodes.append(helper.make_node("Tanh", [last], [f"kept{i}"]))
        last = f"kept{i}"
    for i in reversed(range(5)):
        nodes.append(helper.make_node("Add", [last, f"kept{i}"], [f"sum{i}"]))
        last = f"sum{i}"
    nodes.append(helper.make_node("ReduceMean", [last], ["y"], keepdims=0))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 1024, 1024])
    graph = helper.make_graph(nodes, "graph", [image], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = pattern
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": numpy.ones((16, 1024, 1024), numpy.float32)}

    def peak() -> float:
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    before, taken = peak(), []
    for _ in range(3):
        session.run(None, feed)
        taken.append(peak() - before)
    return taken


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
