"""Who takes part in a benchmark, and how an ONNX Runtime session does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from surgeon import memory, pieces
from surgeon.placement import off_device
from surgeon.providers import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = numpy.ndarray[Any, numpy.dtype[Any]]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """Something to time. Calling `run` does `passes` passes (a forward pass is half of one), and returns after them.

    `peak` measures the bytes of memory that it takes, in a process of its own.
    """

    name: str
    run: Call
    passes: float = 1
    peak: Callable[[], int | None] = lambda: None


class Unavailable(Exception):
    """An opponent that cannot take part on this machine; the message says why, and the others go on."""


@dataclass(frozen=True)
class Artifact:
    """An ONNX file, loaded for a device."""

    path: Path
    session: InferenceSession
    device: str
    threads: int
    temperature: float | None

    @classmethod
    def open(cls, path: Path, device: str, threads: int, temperature: float | None = None) -> Artifact:
        """As `surgeon.load` has it at this temperature. Raises what `surgeon.providers.open_session` raises."""
        return cls(path, open_session(path, device, threads, temperature=temperature), device, threads, temperature)

    @property
    def off_device(self) -> tuple[str, ...]:
        """The nodes that a session on a GPU runs on the CPU, but for arithmetic on sizes."""
        return () if self.device == "cpu" else off_device(self.path, self.session)

    def contender(
        self, name: str, given: Mapping[str, Array], passes: float = 1, at_once: int | None = None
    ) -> Contender:
        """A contender that runs the file on those of `given` that it takes, on a CPU so many samples at once."""
        ports = [port.name for port in [*self.session.get_inputs(), *self.session.get_overridable_initializers()]]
        taken = {name: given[name] for name in ports if name in given}
        if self.device == "cpu":
            most = at_once or len(given["input"])
            peak = functools.partial(memory.peak, self.path, taken, self.threads, most, self.temperature)
            return Contender(name, lambda: pieces.run(self.session, taken, most), passes, peak)
        return Contender(name, _bound(self.session, taken, self.device), passes)


def _bound(session: InferenceSession, taken: Mapping[str, Array], device: str) -> Call:
    """A call that runs `session` on a GPU and copies nothing there or back, but for scalars."""
    import onnxruntime

    binding = session.io_binding()
    for name, value in taken.items():
        place = device if value.ndim else "cpu"
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, place, 0))
    for port in session.get_outputs():
        binding.bind_output(port.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
