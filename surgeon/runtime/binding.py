"""Runs of an ONNX Runtime session: on the CPU from arrays to arrays, on a GPU on values that stay there. Torch-free.

On a GPU, inputs, outputs and the state of an ascent have fixed addresses, kept for each set of shapes. So nothing is
allocated after the first run, an ascent uploads values at its start alone, and CUDA graphs, which replay a run at the
addresses that it was captured at, become possible.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy

from surgeon.bundle.units import Array
from surgeon.runtime.batching import Feeds, SamplesPerRun, run_in_batches, whole
from surgeon.runtime.providers import Device

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue, RunOptions

_STATE, _SUCCESSOR = "input", "perturbed"
"""An ascent's step reads its state as the input, and writes the next state as the output of the other name."""

UNCAPTURED = -1
"""The graph id of runs that are neither captured nor replayed, among those that are."""


def bind(session: InferenceSession, device: Device, at_once: SamplesPerRun = whole) -> HostSession | DeviceSession:
    """`session` with its way to run on `device`; on a CPU, `at_once` samples in one run."""
    return (
        HostSession(session, at_once)
        if device.name == "cpu"
        else DeviceSession(session, device.memory, device.index, device.captures)
    )


def run_options(graph: int | None = None) -> RunOptions:
    """Options of one run: no log, since errors are raised; and the id of its CUDA graph."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class HostSession:
    """A session from arrays to arrays: on the CPU, where that copies nothing."""

    def __init__(self, session: InferenceSession, at_once: SamplesPerRun = whole) -> None:
        self.session, self.at_once = session, at_once

    def run(self, feeds: Feeds) -> list[Array]:
        """The outputs, in the session's order."""
        return run_in_batches(self.session, feeds, self.at_once(feeds), run_options())

    def iterate(self, feeds: Feeds) -> Generator[list[Array], None, None]:
        """The outputs of one step of an ascent, then of the step from where it leads, and so on without end."""
        successor = [port.name for port in self.session.get_outputs()].index(_SUCCESSOR)
        while True:
            outputs = self.run(feeds)
            yield outputs
            feeds = {**feeds, _STATE: outputs[successor]}


class DeviceSession:
    """A session on values in the memory of a `device`: "cuda", or "cpu" in tests.

    With `captures`, the first run at a set of addresses allocates, the second is captured as a CUDA graph, later ones
    replay it. All inputs, scalars included, live on the device and are updated in place, so replays never see stale
    values. Whole-numbered scalars are the exception: kernels want them on the CPU and make shapes of them, so each
    value has its own buffers and its own graph.
    """

    def __init__(self, session: InferenceSession, device: str, index: int = 0, captures: bool = False) -> None:
        self.session = session
        self._place = device, index
        self._graph_ids = itertools.count(1) if captures else None
        self._free: dict[Any, list[_BufferSet]] = {}  # buffers that no run uses now, by `_buffer_key`

    def run(self, feeds: Feeds) -> list[Array]:
        """As `HostSession.run`; the arrays are copies."""
        with self._borrowed(feeds) as buffers:
            buffers.run()
            return buffers.outputs()

    def iterate(self, feeds: Feeds) -> Generator[list[Array], None, None]:
        """As `HostSession.iterate`; the state stays on the device. Several may run at once, each with its buffers."""
        with self._borrowed(feeds) as buffers:
            for last in buffers.iterate():
                yield last.outputs()

    def timed_run(self, feeds: Feeds) -> Callable[[], None]:
        """A function that runs the session on `feeds` without a copy to or from the device."""
        buffers = self._allocated(feeds)
        buffers.fill(feeds)
        return buffers.run

    def timed_step(self, feeds: Feeds) -> Callable[[], None]:
        """A function that does the next step of an ascent from `feeds` without a copy to or from the device."""
        buffers = self._allocated(feeds)
        buffers.fill(feeds)
        steps = buffers.iterate()

        def step() -> None:
            next(steps)

        return step

    @contextlib.contextmanager
    def _borrowed(self, feeds: Feeds) -> Iterator[_BufferSet]:
        free = self._free.setdefault(_buffer_key(feeds), [])
        buffers = free.pop() if free else self._allocated(feeds)
        try:
            buffers.fill(feeds)
            yield buffers
        finally:
            free.append(buffers)

    def _allocated(self, feeds: Feeds) -> _BufferSet:
        inputs = {name: self._memory_for(value) for name, value in feeds.items()}
        return _BufferSet(self.session, self._place, inputs, self._graph_ids)

    def _memory_for(self, value: Array) -> OrtValue:
        """Memory of the shape and dtype of `value`; a copy on the CPU too, since runs write into it."""
        import onnxruntime

        place = ("cpu", 0) if _is_size(value) else self._place
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(value.shape), value.dtype, *place)


class _BufferSet:
    """The buffers of one run, at fixed addresses; where CUDA graphs are captured it takes the next of `graph_ids`."""

    def __init__(
        self,
        session: InferenceSession,
        place: tuple[str, int],
        inputs: dict[str, OrtValue],
        graph_ids: Iterator[int] | None,
        outputs: dict[str, OrtValue] | None = None,
    ) -> None:
        self._session, self._place, self._inputs, self._graph_ids = session, place, inputs, graph_ids
        self._names = [port.name for port in session.get_outputs()]
        self._binding = session.io_binding()
        self._outputs: dict[str, OrtValue] = {}
        self._graph_id = None if graph_ids is None else next(graph_ids)
        if outputs is None:  # ONNX Runtime knows their shapes, and allocates them in the first run
            for name in self._names:
                self._binding.bind_output(name, *place)
        else:
            self._write_to(outputs)

    def fill(self, feeds: Feeds) -> None:
        """Overwrite the inputs with new values."""
        for name, value in feeds.items():
            self._inputs[name].update_inplace(numpy.asarray(value, order="C"))

    def run(self) -> None:
        """Run the session, and wait for it."""
        for name, value in self._inputs.items():
            # Bound before each run: where a kernel wants the value elsewhere, ONNX Runtime copies it there now, once.
            self._binding.bind_ortvalue_input(name, value)
        graph_id = self._graph_id if self._outputs or self._graph_id is None else UNCAPTURED
        self._session.run_with_iobinding(self._binding, run_options(graph_id))
        self._binding.synchronize_outputs()
        if not self._outputs:
            self._write_to(dict(zip(self._names, self._binding.get_outputs(), strict=True)))

    def outputs(self) -> list[Array]:
        """Copies of the last run's outputs."""
        arrays = [self._outputs[name].numpy() for name in self._names]
        return [array.copy() for array in arrays] if self._place[0] == "cpu" else arrays  # on the CPU they are views

    def iterate(self) -> Iterator[_BufferSet]:
        """Run these buffers, then `_reverse`, and so on in turns; yields those that ran last."""
        while True:
            self.run()
            yield self
            self._reverse.run()
            yield self._reverse

    @functools.cached_property
    def _reverse(self) -> _BufferSet:
        """The next step's buffers: they read the state that these write, and write the state that these read."""
        state, successor = self._inputs[_STATE], self._outputs[_SUCCESSOR]
        inputs, outputs = {**self._inputs, _STATE: successor}, {**self._outputs, _SUCCESSOR: state}
        return _BufferSet(self._session, self._place, inputs, self._graph_ids, outputs)

    def _write_to(self, outputs: dict[str, OrtValue]) -> None:
        self._outputs = outputs
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)


def _buffer_key(feeds: Feeds) -> Any:
    """What buffers depend on, and graphs with them: names, shapes and dtypes of the inputs, and the values of sizes."""
    return tuple(
        (name, value.shape, value.dtype.str, int(value) if _is_size(value) else None)
        for name, value in sorted(feeds.items())
    )


def _is_size(value: Array) -> bool:
    """Whether `value` is a whole number, such as a count of steps."""
    return not value.ndim and value.dtype.kind in "iub"
