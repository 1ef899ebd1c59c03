"""How much memory there is, and how much a run of an artifact takes, measured in a process of its own. Torch-free.

The process has Python, numpy, ONNX Runtime and the inputs when it begins to count, so what is counted is the session,
its weights among it, and two runs, of which the second may take more: what a program that runs the artifact needs on
top of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy

from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError
from surgeon.runtime.binding import HostSession
from surgeon.runtime.providers import CPU, open_session


def peak(
    path: Path, feeds: Mapping[str, Array], threads: int, at_once: int, temperature: float | None = None
) -> int | None:
    """Bytes at the peak of loading the ONNX file `path` and running it twice on the CPU; None on Windows.

    It is loaded as `surgeon.load` does, for one `temperature` if that is given, and runs `at_once` samples together.

    Raises SurgeonError where the process fails, as it does where memory runs out.
    """
    if sys.platform == "win32":
        return None
    with tempfile.TemporaryDirectory(prefix="surgeon-memory-") as folder:
        given = Path(folder) / "feeds.npz"
        numpy.savez(given, allow_pickle=False, **feeds)
        command = [
            sys.executable,
            "-m",
            "surgeon.analysis.bench.memory",
            str(path),
            str(given),
            str(threads),
            str(at_once),
        ]
        command += [] if temperature is None else [repr(temperature)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        told = (ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"])[-1]
        raise SurgeonError(f"the memory of {path.name} could not be measured: {told}", "Free some memory first")
    return int(ran.stdout)


def _measure(path: Path, given: Path, threads: int, at_once: int, temperature: float | None) -> int:
    import onnxruntime  # noqa: F401  its libraries are not the artifact's

    with numpy.load(given) as stored:
        feeds = {name: stored[name] for name in stored.files}
    before = _highest()
    loaded = HostSession(open_session(path, CPU, threads, temperature=temperature), lambda _: at_once)
    for _ in range(2):
        loaded.run(feeds)
    return _highest() - before


def _highest() -> int:
    """Bytes of memory at the most, so far. Linux's own count, since getrusage there remembers the parent's as well."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _temperature = float(sys.argv[5]) if len(sys.argv) > 5 else None
    print(_measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), _temperature))
