"""Who takes part in a benchmark, and how an ONNX Runtime session does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = numpy.ndarray[Any, numpy.dtype[Any]]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """Something to time. Calling `run` does `passes` passes and returns when the last is done."""

    name: str
    run: Call
    passes: int = 1


class Unavailable(Exception):
    """An opponent that cannot take part on this machine; the message says why, and the others go on."""


def onnx_call(session: InferenceSession, given: dict[str, Array], device: str) -> Call:
    """A call that runs `session` on those of `given` that it takes; on a GPU nothing is copied, but for scalars."""
    ports = [port.name for port in [*session.get_inputs(), *session.get_overridable_initializers()]]
    taken = {name: given[name] for name in ports if name in given}
    if device == "cpu":
        return lambda: session.run(None, taken)
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
