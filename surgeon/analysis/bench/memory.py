"""Peak memory of running an artifact, measured in a separate process. Torch-free.

The process imports numpy and ONNX Runtime and reads the inputs before it begins to count. So the figure is the memory
of the session, weights included, and of two runs, the second of which may take more: what running the artifact adds to
a program.
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
    """Peak bytes of loading the ONNX file `path` and running it twice on the CPU; None on Windows.

    It is loaded as by `surgeon.load`, for one `temperature` unless that is None, and runs `at_once` samples together.
    Raises SurgeonError where the process fails, as it does where memory runs out.
    """
    if sys.platform == "win32":
        return None
    with tempfile.TemporaryDirectory(prefix="surgeon-memory-") as folder:
        feeds_file = Path(folder) / "feeds.npz"
        numpy.savez(feeds_file, allow_pickle=False, **feeds)
        command = [sys.executable, "-m", "surgeon.analysis.bench.memory"]
        command += map(str, (path, feeds_file, threads, at_once, *(() if temperature is None else (temperature,))))
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"])[-1]
        raise SurgeonError(f"the memory of {path.name} could not be measured: {reason}", "Free some memory first")
    return int(ran.stdout)


def _measure(path: Path, feeds_file: Path, threads: int, at_once: int, temperature: float | None) -> int:
    import onnxruntime  # noqa: F401  its libraries are not the artifact's

    with numpy.load(feeds_file) as stored:
        feeds = {name: stored[name] for name in stored.files}
    before = _highest()
    loaded = HostSession(open_session(path, CPU, threads, temperature=temperature), lambda _: at_once)
    for _ in range(2):
        loaded.run(feeds)
    return _highest() - before


def _highest() -> int:
    """Peak bytes of this process so far; on Linux from /proc, since getrusage there counts the parent's peak too."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _temperature = float(sys.argv[5]) if len(sys.argv) > 5 else None
    print(_measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), _temperature))
