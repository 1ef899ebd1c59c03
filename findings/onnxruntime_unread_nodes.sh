#!/usr/bin/env bash
# ONNX Runtime runs nodes whose results nobody reads, and keeps those results until the run ends.
#
# A graph's output here depends on one node; eight others read the same input, and nothing reads them. Level 3
# optimisation takes out identities, duplicates and constants, but none of these. Each of their results stays in memory
# to the end, so eight unread results take eight buffers, where a chain of eight results that are read takes one, over
# and over.
#
# Expected: what no output depends on is not run; or, at least, its memory is free when the node is done.
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
    "nodes that ran, of 1 read and 8 unread": 9,
    "buffers at the peak, 1 read and no unread": 0,
    "buffers at the peak, 1 read and 8 unread": 8,
    "buffers at the peak, a chain of 8 that are read": 1,
}
MEGABYTES = 64  # of one buffer


def observe() -> dict[str, int]:
    """Nodes in the profile of a run, and the growth of the peak of memory in the run, in buffers of 64 MB."""
    import json

    def measure(*kind: str) -> list[int]:
        import subprocess
        import sys

        # A process for each, since a peak never goes down.
        program = "import finding as own, json, sys; print(json.dumps(own.measured(*sys.argv[1:])))"
        from pathlib import Path

        environment = {"PYTHONPATH": str(Path.cwd())}
        done = subprocess.run([sys.executable, "-c", program, *kind], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    nodes, unread = measure("unread", "8")
    return {
        "nodes that ran, of 1 read and 8 unread": nodes,
        "buffers at the peak, 1 read and no unread": measure("unread", "0")[1],
        "buffers at the peak, 1 read and 8 unread": unread,
        "buffers at the peak, a chain of 8 that are read": measure("chain", "8")[1],
    }


def measured(kind: str, count: str) -> tuple[int, int]:
    """How many nodes ran, and how many buffers the peak of memory grew by."""
    import json
    import resource
    import sys

    import numpy
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    nodes, last = [], "x"
    for i in range(int(count)):
        # Each another function, so that none is a duplicate of another.
        nodes.append(helper.make_node("Elu", [last], [f"result{i}"], name=f"node{i}", alpha=1 + i / 8))
        if kind == "chain":
            last = f"result{i}"
    nodes.append(helper.make_node("ReduceMean", [last], ["y"], name="mean", keepdims=0))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 1024, 1024])
    graph = helper.make_graph(nodes, "graph", [image], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": numpy.full((16, 1024, 1024), -1, numpy.float32)}

    def peak() -> float:
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    before = peak()
    session.run(None, feed)
    grown = peak() - before
    with open(session.end_profiling()) as file:
        events = json.load(file)
    return sum(event["name"].endswith("_kernel_time") for event in events), round(grown / MEGABYTES)


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
