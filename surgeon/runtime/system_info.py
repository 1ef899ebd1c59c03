"""What a measurement was made on: processor, cores, threads, device, versions. Torch-free."""

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
    load: float | None  # processes that wanted to run just before, the one-minute average; None where nobody counts
    versions: dict[str, str]  # of Python, surgeon, and those of PACKAGES that are installed

    @property
    def busy(self) -> bool:
        """Whether others wanted cores that the measurement needs; one is let pass, since starting takes a core."""
        return self.load is not None and self.load + self.threads > self.cores + 1


def describe(device: str, threads: int, load: float | None = None) -> Machine:
    """This machine; `device` is "cpu", or that of a GPU."""
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
    """The processor's name as its maker writes it, or the architecture's where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> str:
    """Name of the first NVIDIA GPU and its driver, as nvidia-smi tells; "unknown" where it is not there."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    name, _, driver = told.strip().partition(", ")
    return f"{name} (driver {driver})"


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system does not count them."""
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
    """Bytes of memory in this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
