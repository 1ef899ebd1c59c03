"""ONNX Runtime's CUDA provider on a machine without a GPU: it assigns nodes as it would with one, and runs none.

Where a node goes is decided by the provider's own kernels, before anything is computed. All that keeps the provider
from loading is CUDA's libraries, so this makes libraries of the same names, whose functions do nothing but succeed.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime

from surgeon.errors import OptionError

TOOLS = ("gcc", "nm", "readelf")
_PROVIDER = "libonnxruntime_providers_cuda.so"

# Functions of which the caller uses more than the success that they report.
_PARTICULAR = {
    "cudaMalloc": "int cudaMalloc(void **p, size_t n) { *p = malloc(n); return 0; }",
    "cudaMallocHost": "int cudaMallocHost(void **p, size_t n) { *p = malloc(n); return 0; }",
    "cudaHostAlloc": "int cudaHostAlloc(void **p, size_t n, unsigned f) { *p = malloc(n); return 0; }",
    "cudaMemGetInfo": "int cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = 1UL << 33; return 0; }",
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 1; return 0; }",
    "cudaGetErrorString": 'const char *cudaGetErrorString() { return "stand-in"; }',
    "cudaGetErrorName": 'const char *cudaGetErrorName() { return "stand-in"; }',
    "__cudaRegisterFatBinary": "void *__cudaRegisterFatBinary() { static int handle; return &handle; }",
}

_ASK = """
import json, sys
from pathlib import Path
import onnxruntime
del onnxruntime.preload_dlls  # it would load torch's own libraries of CUDA, which want a GPU
from surgeon.errors import OptionError
from surgeon.runtime.placement import off_device
from surgeon.runtime.providers import Device, open_session
path = Path(sys.argv[1])
device = Device("cuda", json.loads(sys.argv[2]))
try:
    session = open_session(path, device, 1)
except OptionError as error:
    sys.exit(str(error))
assigned = session.get_provider_graph_assignment_info()
where = [(one.ep_name, node.op_type) for one in assigned for node in one.get_nodes()]
print(json.dumps([where, off_device(path, session, device)]))
"""


def missing() -> str | None:
    """Why this cannot be done here; None where it can."""
    if not sys.platform.startswith("linux"):
        return "the stand-in for CUDA is made for Linux"
    if not _provider().exists():
        return "the installed ONNX Runtime has no CUDA provider"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{absent[0]} is not installed" if absent else None


def build(folder: Path) -> None:
    """Write a library into `folder` for each of CUDA's that the provider needs."""
    needed = [line.split("[")[1].rstrip("]") for line in _lines("readelf", "-d") if "NEEDED" in line]
    symbols = collections.defaultdict(set)
    for line in _lines("nm", "-D", "--undefined-only"):
        name, _, library = line.split()[-1].partition("@")
        symbols[library].add(name)
    for library in (name for name in needed if name.startswith("libcu")):
        # libcuda.so.1 gives its symbols no version.
        names = symbols[library] or {name for name in symbols[""] if name.startswith("cu")}
        code = ["#include <stdlib.h>", f"int stand_in_for_{library.replace('.', '_')};"]
        code += [_PARTICULAR.get(name, f"int {name}() {{ return 0; }}") for name in sorted(names)]
        source, versions = folder / f"{library}.c", folder / f"{library}.map"
        source.write_text("\n".join(code))
        versions.write_text(f"{library} {{ global: *; }};")
        script = [f"-Wl,--version-script={versions}"] if symbols[library] else []
        flags = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", *script]
        subprocess.run(["gcc", *flags, "-o", str(folder / library), str(source)], check=True)


def assignment(libraries: Path, path: Path, **options: str) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """How many nodes of the ONNX file `path` go where, by (provider, operator), and what `off_device` says of them."""
    where, off = json.loads(_ask(libraries, path, options).splitlines()[-1])
    return collections.Counter(tuple(one) for one in where), off


def refusal(libraries: Path, path: Path, **options: str) -> str:
    """The line that tells why the provider does not run the ONNX file `path` with these options."""
    return _ask(libraries, path, options, fails=True)


def _ask(libraries: Path, path: Path, options: dict[str, str], fails: bool = False) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, "-c", _ASK, str(path), json.dumps(options)]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert asked.returncode == (OptionError.exit_code if fails else 0), asked.stderr
    return asked.stderr if fails else asked.stdout


def _provider() -> Path:
    return Path(onnxruntime.__file__).parent / "capi" / _PROVIDER


def _lines(*command: str) -> list[str]:
    ran = subprocess.run([*command, str(_provider())], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()
