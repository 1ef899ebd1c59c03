"""The artifacts on their own: in processes that have a runtime and nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import surgeon

# Run with the names of the packages that may be imported, before the program itself.
ALONE = """
import importlib.abc, sys
allowed = set(sys.argv[1].split(","))
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"surgeon", "onnx", "torch", "torchvision", "PIL"} - allowed:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Blocker())
"""

WITH_ONNXRUNTIME = """
import json
import numpy as np
import onnxruntime
onnxruntime.set_default_logger_severity(3)
folder = sys.argv[2]
x = np.load(sys.argv[3] + "/input.npy")
c = np.eye(10, dtype=np.float32)[[3, 5]]
def run(name, **feeds):
    session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx", providers=["CPUExecutionProvider"])
    return dict(zip((port.name for port in session.get_outputs()), session.run(None, feeds)))
found = {
    "pullback": run("pullback", input=x, cotangent=c),
    "ascent_step": run("ascent_step", input=x, origin=x, cotangent=c),
    "ascent": run("ascent", input=x, cotangent=c, steps=np.array(3)),
}
np.savez(sys.argv[3] + "/found.npz", **{f"{name}/{key}": value for name in found for key, value in found[name].items()})
"""

WITH_TORCH = """
import warnings
warnings.simplefilter("ignore")  # TorchScript is deprecated as a whole
import numpy as np
import torch
folder = sys.argv[2]
x = torch.from_numpy(np.load(sys.argv[3] + "/input.npy"))
c = torch.eye(10)[[3, 5]]
found = dict(zip(("pullback/output", "pullback/pullback"), torch.jit.load(folder + "/pullback.ts")(x, c)))
names = ("ascent/perturbed", "ascent/output", "ascent/pullback", "ascent/score")
found |= dict(zip(names, torch.jit.load(folder + "/ascent.ts")(x, c, steps=torch.tensor(3))))
np.savez(sys.argv[3] + "/found.npz", **{name: value.numpy() for name, value in found.items()})
"""


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)


def alone(program: str, allowed: str, bundle: Path, image: np.ndarray, scratch: Path) -> dict[str, np.ndarray]:
    """What `program` finds on `image`, in a process that can import the packages `allowed` and not ours."""
    np.save(scratch / "input.npy", image)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + program, allowed, str(bundle), str(scratch)],
        capture_output=True,
        text=True,
        cwd=scratch,
    )
    assert done.returncode == 0, done.stderr
    with np.load(scratch / "found.npz") as stored:
        return dict(stored)


def expected(bundle: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    session = surgeon.load(bundle)
    cotangent = session.one_hot([3, 5])
    ascent = session.ascent(image, cotangent, steps=3)
    pullback = session.pullback(image, cotangent)
    return {
        **{f"pullback/{name}": getattr(pullback, name) for name in ("output", "pullback")},
        **{f"ascent/{name}": getattr(ascent, name) for name in ("perturbed", "output", "pullback", "score")},
    }


@pytest.mark.parametrize(
    ("program", "allowed"),
    [(WITH_ONNXRUNTIME, "numpy,onnxruntime"), (WITH_TORCH, "torch")],
    ids=["onnx", "torchscript"],
)
def test_runs_alone(program: str, allowed: str, digits_bundle: Path, image: np.ndarray, tmp_path: Path) -> None:
    wanted = expected(digits_bundle, image)
    found = alone(program, allowed, digits_bundle, image, tmp_path)
    assert wanted.keys() <= found.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_one_step_is_the_first_of_the_loop(digits_bundle: Path, image: np.ndarray) -> None:
    session = surgeon.load(digits_bundle)
    cotangent = session.one_hot([3, 5])
    step = list(session.steps(image, cotangent, steps=3))[3]
    loop = session.ascent(image, cotangent, steps=3)
    np.testing.assert_allclose(step.perturbed, loop.perturbed, rtol=1e-4, atol=1e-5)


def test_every_file_says_what_it_is(digits_bundle: Path) -> None:
    for name in ("pullback.onnx", "ascent_step.onnx", "ascent.onnx"):
        model = onnx.load(digits_bundle / name, load_external_data=False)
        facts = json.loads({prop.key: prop.value for prop in model.metadata_props}["surgeon"])
        assert facts["model"]["name"] == "digits"
        assert facts["defaults"]["temperature"] == 0.3
        assert [gate["module"] for gate in facts["gates"]] == [f"features.{i}" for i in (2, 3, 6, 7, 10)]


def test_every_node_says_where_it_comes_from(digits_bundle: Path) -> None:
    model = onnx.load(digits_bundle / "pullback.onnx", load_external_data=False)
    marks = [{prop.key: prop.value for prop in node.metadata_props} for node in model.graph.node]
    unmarked = [node.op_type for node, mark in zip(model.graph.node, marks, strict=True) if "surgeon.role" not in mark]
    assert unmarked in ([], ["Shape"], ["Shape", "Squeeze"])  # the batch's size, which forward and backward share
    gates = [mark for node, mark in zip(model.graph.node, marks, strict=True) if node.op_type == "Sigmoid"]
    assert [mark["surgeon.module"] for mark in gates] == ["features.10", "features.6", "features.2"]
    assert {mark["surgeon.role"] for mark in gates} == {"backward"}
    roles = [mark["surgeon.role"] for mark in marks if mark]
    assert roles == sorted(roles, reverse=True)  # forward first, then backward
