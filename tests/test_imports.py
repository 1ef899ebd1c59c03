"""Imports run one way, torch stays behind its boundary, and each module imports alone and without a warning."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORDER = (
    *("errors", "bundle", "runtime", "network", "conversion", "verify", "exporting", "app", "analysis", "cli"),
    *("__main__",),
)
TORCH_PACKAGES = {"network", "conversion", "verify", "exporting"}
# Of `analysis`, the modules that convert a network, or run one, as well.
TORCH_IN_ANALYSIS = {
    "surgeon.analysis.bench.baselines",
    "surgeon.analysis.bench.eager",
    "surgeon.analysis.inspect.convertibility",
    "surgeon.analysis.inspect.model_summary",
    "surgeon.analysis.same_network",
}
TORCH = {"torch", "torchvision", "onnxscript"}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {_name(path): path for path in (ROOT / "surgeon").rglob("*.py")}


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports: at its top, in a function, or for type annotations."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}:{node.lineno} is a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in SOURCES else node.module


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


IMPORTS = {module: set(imports(module)) for module in sorted(SOURCES)}
OWN = {module: (names & set(SOURCES)) - {module} for module, names in IMPORTS.items()}
NEEDS_TORCH = {module for module in SOURCES if package(module) in TORCH_PACKAGES} | TORCH_IN_ANALYSIS


def test_every_folder_has_its_place_in_the_order() -> None:
    assert {package(module) for module in SOURCES} - {"", "examples"} == set(ORDER)


def test_imports_run_one_way() -> None:
    ranks = {name: rank for rank, name in enumerate(("", *ORDER))}
    upwards = {
        f"{m} -> {name}" for m, names in OWN.items() for name in names if ranks[package(m)] < ranks[package(name)]
    }
    assert not upwards


def test_imports_form_no_circle() -> None:
    TopologicalSorter(OWN).prepare()  # raises CycleError


def test_torch_is_imported_behind_its_boundary_alone() -> None:
    assert set(SOURCES) >= TORCH_IN_ANALYSIS
    importers = {m for m, names in IMPORTS.items() if TORCH & {name.partition(".")[0] for name in names}}
    assert importers <= NEEDS_TORCH


def test_no_test_module_imports_another() -> None:
    """What several share stands in a conftest.py, or beside them in a module that holds no tests."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("test_")], f"{path}:{node.lineno}"


# What a module imports takes seconds, so it is done once: each module is imported in a fork of a process that has it.
IN_FORKS = """
import importlib, json, os, sys, traceback, warnings
boundary, names, held = json.loads(sys.argv[1])
for name in held:
    importlib.import_module(name)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in boundary:
            raise ImportError(f"{name} is imported")

failed = []
for name in names:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forking beside the threads of libraries
        child = os.fork()
    if child == 0:
        warnings.simplefilter("error")
        sys.meta_path.insert(0, Refuse())
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(json.dumps(failed))
"""
ASK_FOR_HELP = """
import json, sys, surgeon.cli
sys.argv = ["surgeon", "--help"]
try:
    surgeon.cli.main()
except SystemExit as end:
    assert not end.code
print(json.dumps([name for name in ("torch", "numpy", "onnx", "onnxruntime", "PIL") if name in sys.modules]))
"""


def run(code: str, *arguments: str) -> list[str]:
    """The list that a fresh interpreter, where warnings are errors, prints last."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    listed: list[str] = json.loads(done.stdout.splitlines()[-1])
    assert not listed, done.stderr
    return listed


def import_alone(names: set[str], *, held: list[str], refused: set[str]) -> None:
    run(IN_FORKS, json.dumps([sorted(refused), sorted(names), held]))


def test_other_modules_import_where_torch_is_missing() -> None:
    names = set(SOURCES) - NEEDS_TORCH
    import_alone(names, held=["numpy", "onnx", "onnxruntime", "click", "rich"], refused=TORCH)


def test_converting_modules_import_alone() -> None:
    import_alone(
        NEEDS_TORCH, held=["torch", "torch.fx", "torchvision", "onnx", "onnxruntime", "onnxscript"], refused=set()
    )


def test_help_imports_nothing_heavy() -> None:
    run(ASK_FOR_HELP)
