"""Candidates: what a benchmark times, and ONNX artifacts as candidates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.analysis.bench import memory
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError, first_line
from surgeon.runtime.batching import SamplesPerRun, whole
from surgeon.runtime.binding import DeviceSession, HostSession, bind
from surgeon.runtime.placement import fallback, off_device
from surgeon.runtime.providers import Device, open_session

TimedCall = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """Something to time. Calling `run` does `passes` passes (a forward pass is half of one), and returns after them.

    `peak` measures the most bytes of memory that a run takes, in a separate process; None where that is not known.
    """

    name: str
    run: TimedCall
    passes: float = 1
    peak: Callable[[], int | None] = lambda: None


class Unavailable(Exception):
    """A baseline cannot take part on this machine, for the reason in the message; the others are timed without it."""


@dataclass(frozen=True)
class LoadedArtifact:
    """An ONNX file, loaded for a device."""

    path: Path
    loaded: HostSession | DeviceSession
    device: Device
    threads: int
    temperature: float | None

    @classmethod
    def open(
        cls, path: Path, device: Device, threads: int, temperature: float | None = None, at_once: SamplesPerRun = whole
    ) -> LoadedArtifact:
        """Load `path` as `surgeon.load` does at this temperature; raises as `runtime.providers.open_session` does."""
        session = open_session(path, device, threads, temperature=temperature)
        return cls(path, bind(session, device, at_once), device, threads, temperature)

    @property
    def off_device(self) -> tuple[str, ...]:
        """The nodes that a session on a GPU runs on the CPU, arithmetic on sizes left out."""
        return off_device(self.path, self.loaded.session, self.device)

    @property
    def fallback(self) -> tuple[str, ...]:
        """The nodes that the provider leaves to its fallback."""
        return fallback(self.loaded.session, self.device)

    def values(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, for the `inputs` that the file takes; raises SurgeonError where it does not run."""
        outputs = _named(self.path, self.loaded.run)(self._taken(inputs))
        return dict(zip((port.name for port in self.loaded.session.get_outputs()), outputs, strict=True))

    def candidate(self, name: str, inputs: Mapping[str, Array], passes: float = 1) -> Candidate:
        """A candidate that runs the file on the `inputs` that it takes; on a GPU, they are copied there beforehand."""
        taken = self._taken(inputs)
        if isinstance(self.loaded, DeviceSession):
            return Candidate(name, _named(self.path, self.loaded.timed_run(taken)), passes)
        at_once = self.loaded.at_once(taken)
        peak = functools.partial(memory.peak, self.path, taken, self.threads, at_once, self.temperature)
        return Candidate(name, functools.partial(self.loaded.run, taken), passes, peak)

    def stepping_candidate(self, name: str, inputs: Mapping[str, Array], steps: int) -> Candidate:
        """A candidate that continues an ascent by `steps` steps on a GPU, where its state stays."""
        assert isinstance(self.loaded, DeviceSession)
        step = self.loaded.timed_step(self._taken(inputs))

        def run() -> None:
            for _ in range(steps):
                step()

        return Candidate(name, _named(self.path, run), steps)

    def _taken(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self.loaded.session
        ports = [port.name for port in [*session.get_inputs(), *session.get_overridable_initializers()]]
        return {name: inputs[name] for name in ports if name in inputs}


def _named(path: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, raising SurgeonError where ONNX Runtime fails, as it does where a GPU's memory runs out."""

    @functools.wraps(call)
    def run(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise SurgeonError(f"{path.name} does not run ({first_line(error)})", "Try a smaller batch") from error

    return run
