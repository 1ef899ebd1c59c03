from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import surgeon

TORCH_FREE = {
    "surgeon",
    "surgeon.app",
    "surgeon.app.policy",
    "surgeon.app.serve",
    "surgeon.app.site",
    "surgeon.app.vendored",
    "surgeon.errors",
    "surgeon.analysis.evaluate.evaluation",
    "surgeon.analysis.evaluate.explanations",
    "surgeon.analysis.evaluate.faithfulness",
    "surgeon.bundle",
    "surgeon.bundle.folder",
    "surgeon.bundle.manifest",
    "surgeon.bundle.ports",
    "surgeon.bundle.default_temperature",
    "surgeon.analysis.bench.benchmark",
    "surgeon.analysis.inspect.diagram",
    "surgeon.analysis.inspect.diagram.edges",
    "surgeon.analysis.inspect.diagram.layout",
    "surgeon.analysis.inspect.diagram.page",
    "surgeon.analysis.inspect.diagram.svg",
    "surgeon.analysis.inspect.diagram.tree",
    "surgeon.analysis.inspect.grouping",
    "surgeon.analysis.inspect.shape_inference",
    "surgeon.analysis.inspect.kernels",
    "surgeon.analysis.inspect.structure",
    "surgeon.analysis.evaluate.calibration",
    "surgeon.analysis.bench.candidates",
    "surgeon.runtime.input_validation",
    "surgeon.analysis.figures.gate_plot",
    "surgeon.analysis.evaluate.gate_statistics",
    "surgeon.runtime.system_info",
    "surgeon.analysis.bench.memory",
    "surgeon.runtime.placement",
    "surgeon.analysis.figures.plots",
    "surgeon.analysis.bench.profiling",
    "surgeon.runtime.session",
    "surgeon.bundle.units",
    "surgeon.analysis.inspect.inspection",
    "surgeon.runtime.pictures",
    "surgeon.runtime.providers",
}
MODULES = {"surgeon", *(found.name for found in pkgutil.walk_packages(surgeon.__path__, "surgeon."))}
COMMANDS = {name for name in MODULES if name.startswith("surgeon.cli")}  # what a command needs it imports when it runs

# torch takes seconds to import, so the modules that need it are imported one by one in forks of a process that has it.
IN_FORKS = """
import importlib, os, sys, traceback, warnings
import torch, torch.fx, torchvision
failed = False
for name in sys.argv[1:]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forking beside torch's threads
        child = os.fork()
    if child == 0:
        warnings.simplefilter("error")
        try:
            importlib.import_module(name)
        except BaseException:
            print(f"{name}:", file=sys.stderr)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""
ASK_FOR_HELP = """
import sys, surgeon.cli
sys.argv = ["surgeon", "--help"]
try:
    surgeon.cli.main()
except SystemExit as end:
    assert not end.code
"""
ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> str:
    """Standard output of a fresh interpreter that is given `arguments`."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str, names: list[str]) -> list[str]:
    """Which of `names` a fresh interpreter has imported after `code`, warnings being errors."""
    report = f"import json, sys\n{code}\nprint(json.dumps([name for name in {names} if name in sys.modules]))"
    found: list[str] = json.loads(run("-W", "error", "-c", report).splitlines()[-1])
    return found


def test_the_promised_modules_exist() -> None:
    assert TORCH_FREE | {"surgeon.cli"} <= MODULES


@pytest.mark.parametrize("module", sorted((TORCH_FREE | COMMANDS) & MODULES))
def test_runs_without_torch(module: str) -> None:
    assert loaded(f"import {module}", ["torch", "torchvision", "onnxscript"]) == []


def test_converting_modules_import_alone_and_without_a_warning() -> None:
    run("-c", IN_FORKS, *sorted(MODULES - TORCH_FREE - COMMANDS))


def test_help_imports_nothing_heavy() -> None:
    assert loaded(ASK_FOR_HELP, ["torch", "numpy", "onnx", "onnxruntime", "PIL"]) == []
