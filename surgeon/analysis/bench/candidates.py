"""Who takes part in a benchmark, and how an artifact does."""

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
class Contender:
    """Something to time. Calling `run` does `passes` passes (a forward pass is half of one), and returns after them.

    `peak` measures the bytes of memory that it takes, in a process of its own.
    """

    name: str
    run: TimedCall
    passes: float = 1
    peak: Callable[[], int | None] = lambda: None


class Unavailable(Exception):
    """An opponent that cannot take part on this machine; the message says why, and the others go on."""


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
        """As `surgeon.load` has it at this temperature. Raises what `surgeon.runtime.providers.open_session` raises."""
        session = open_session(path, device, threads, temperature=temperature)
        return cls(path, bind(session, device, at_once), device, threads, temperature)

    @property
    def off_device(self) -> tuple[str, ...]:
        """The nodes that a session on a GPU runs on the CPU, but for arithmetic on sizes."""
        return off_device(self.path, self.loaded.session, self.device)

    @property
    def fallback(self) -> tuple[str, ...]:
        """The nodes that the provider left to the one behind it."""
        return fallback(self.loaded.session, self.device)

    def values(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, of those of `given` that the file takes. Raises SurgeonError where it does not run."""
        outputs = _named(self.path, self.loaded.run)(self._taken(given))
        return dict(zip((port.name for port in self.loaded.session.get_outputs()), outputs, strict=True))

    def contender(self, name: str, given: Mapping[str, Array], passes: float = 1) -> Contender:
        """A contender that runs the file on those of `given` that it takes; on a GPU, they are there beforehand."""
        taken = self._taken(given)
        if isinstance(self.loaded, DeviceSession):
            return Contender(name, _named(self.path, self.loaded.timed_run(taken)), passes)
        at_once = self.loaded.at_once(taken)
        peak = functools.partial(memory.peak, self.path, taken, self.threads, at_once, self.temperature)
        return Contender(name, functools.partial(self.loaded.run, taken), passes, peak)

    def walker(self, name: str, given: Mapping[str, Array], steps: int) -> Contender:
        """A contender that does `steps` more steps of an ascent on a GPU, where its state stays."""
        assert isinstance(self.loaded, DeviceSession)
        step = self.loaded.timed_step(self._taken(given))

        def run() -> None:
            for _ in range(steps):
                step()

        return Contender(name, _named(self.path, run), steps)

    def _taken(self, given: Mapping[str, Array]) -> dict[str, Array]:
        session = self.loaded.session
        ports = [port.name for port in [*session.get_inputs(), *session.get_overridable_initializers()]]
        return {name: given[name] for name in ports if name in given}


def _named(path: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, raising SurgeonError where ONNX Runtime fails, as it does where a GPU's memory runs out."""

    @functools.wraps(call)
    def run(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise SurgeonError(f"{path.name} does not run ({first_line(error)})", "Try a smaller batch") from error

    return run
