"""This machine, as a measurement reports it: processor, cores, threads, device, versions. Torch-free."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import surgeon

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "numpy")


@dataclass(frozen=True)
class Machine:
    """A machine, and the share of it that was used."""

    processor: str
    cores: int  # that this process may run on
    threads: int  # for ONNX Runtime and PyTorch alike
    system: str
    device: str  # cpu, or cuda or tensorrt and the GPU's name
    load: float | None  # the one-minute load average just before; None where the system keeps none
    versions: dict[str, str]  # of Python, surgeon, and those of PACKAGES that are installed

    @property
    def busy(self) -> bool:
        """Whether others wanted cores that the measurement needs; one is allowed, since starting takes a core."""
        return self.load is not None and self.load + self.threads > self.cores + 1


def describe(device: str, threads: int, load: float | None = None) -> Machine:
    """This machine; `device` is "cpu", or a GPU's: "cuda" or "tensorrt"."""
    return Machine(
        processor=processor(),
        cores=cores(),
        threads=threads,
        system=f"{platform.system()} {platform.machine()}",
        device="cpu" if device == "cpu" else f"{device}, {gpu()}",
        load=load,
        versions=versions(),
    )


def cores() -> int:
    """Processor cores that this process may run on, hardware threads counted one by one."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor() -> str:
    """The processor's name as its maker writes it; the architecture's where the system has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> str:
    """Name and driver of the first NVIDIA GPU, by nvidia-smi; "unknown" where that is missing."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    name, _, driver = answer.strip().partition(", ")
    return f"{name} (driver {driver})"


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system keeps no count."""
    with contextlib.suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def versions() -> dict[str, str]:
    """Python's version, surgeon's, and those of PACKAGES that are installed."""
    found = {"python": platform.python_version(), "surgeon": surgeon.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def installed() -> int | None:
    """Bytes of memory in this machine; None where the system has no such call."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
