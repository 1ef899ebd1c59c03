"""How an ONNX Runtime session is run: on the CPU from arrays to arrays, on a GPU on values that stay there. Torch-free.

On a GPU, inputs, outputs and the state of an ascent have fixed addresses, kept for each set of shapes: nothing is
allocated after the first run, of an ascent's steps nothing is uploaded but at the start, and CUDA graphs, which replay
a run at the addresses that it was captured at, need it.
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
"""The input of an ascent's step that its output of the other name takes the place of."""

UNCAPTURED = -1
"""The graph id of runs that are neither captured nor replayed, among those that are."""


def runner(session: InferenceSession, device: Device, at_once: SamplesPerRun = whole) -> HostSession | DeviceSession:
    """How `session` is run on `device`, on a CPU so many samples `at_once`."""
    return (
        HostSession(session, at_once)
        if device.name == "cpu"
        else DeviceSession(session, device.memory, device.index, device.captures)
    )


def quiet(graph: int | None = None) -> RunOptions:
    """Options of one run: no log, since errors are raised; and the CUDA graph that it belongs to."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class HostSession:
    """A session that takes arrays and returns arrays: on the CPU, where that copies nothing."""

    def __init__(self, session: InferenceSession, at_once: SamplesPerRun = whole) -> None:
        self.session, self.at_once = session, at_once

    def run(self, feeds: Feeds) -> list[Array]:
        """The outputs, in the session's order."""
        return run_in_batches(self.session, feeds, self.at_once(feeds), quiet())

    def iterate(self, feeds: Feeds) -> Generator[list[Array], None, None]:
        """The outputs of a step of an ascent, of the step from where that leads, and so on without end."""
        successor = [port.name for port in self.session.get_outputs()].index(_SUCCESSOR)
        while True:
            outputs = self.run(feeds)
            yield outputs
            feeds = {**feeds, _STATE: outputs[successor]}


class DeviceSession:
    """A session that runs on values in the memory of a `device`, "cuda" or, to see that it works, "cpu".

    With `captures`, each run but the first at its addresses is captured in a CUDA graph, or replayed if it has been.
    What a graph reads it reads from the device, scalars too, whose values are replaced in place; so a value that
    changes is never that of the capture. Whole-numbered scalars are the exception: kernels want them on the CPU, and
    shapes come of them, so that for other values there are other buffers, and another graph.
    """

    def __init__(self, session: InferenceSession, device: str, index: int = 0, captures: bool = False) -> None:
        self.session = session
        self._place = device, index
        self._graphs = itertools.count(1) if captures else None
        self._free: dict[Any, list[_BufferSet]] = {}  # by what they are for, the buffers that nobody has at the moment

    def run(self, feeds: Feeds) -> list[Array]:
        """As `HostSession.run`; each array is a copy of its own."""
        with self._lent(feeds) as lap:
            lap.run()
            return lap.outputs()

    def iterate(self, feeds: Feeds) -> Generator[list[Array], None, None]:
        """As `HostSession.iterate`; the state stays on the device. Several may run at once, each with its buffers."""
        with self._lent(feeds) as lap:
            for here in lap.replays():
                yield here.outputs()

    def call(self, feeds: Feeds) -> Callable[[], None]:
        """A call that runs the session on `feeds`, and copies nothing there or back."""
        lap = self._new(feeds)
        lap.fill(feeds)
        return lap.run

    def repeater(self, feeds: Feeds) -> Callable[[], None]:
        """A call that does one more step of an ascent that starts at `feeds`, and copies nothing there or back."""
        lap = self._new(feeds)
        lap.fill(feeds)
        replays = lap.replays()

        def step() -> None:
            next(replays)

        return step

    @contextlib.contextmanager
    def _lent(self, feeds: Feeds) -> Iterator[_BufferSet]:
        free = self._free.setdefault(_kind(feeds), [])
        lap = free.pop() if free else self._new(feeds)
        try:
            lap.fill(feeds)
            yield lap
        finally:
            free.append(lap)

    def _new(self, feeds: Feeds) -> _BufferSet:
        inputs = {name: self._room(value) for name, value in feeds.items()}
        return _BufferSet(self.session, self._place, inputs, self._graphs)

    def _room(self, value: Array) -> OrtValue:
        """Memory for such a value. It is its own on the CPU as well, where a view of the array would be overwritten."""
        import onnxruntime

        place = ("cpu", 0) if _sizes(value) else self._place
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(value.shape), value.dtype, *place)


class _BufferSet:
    """One run from and to fixed addresses. Where there are `graphs`, ids that nobody has, it takes one of them."""

    def __init__(
        self,
        session: InferenceSession,
        place: tuple[str, int],
        inputs: dict[str, OrtValue],
        graphs: Iterator[int] | None,
        outputs: dict[str, OrtValue] | None = None,
    ) -> None:
        self._session, self._place, self._inputs, self._graphs = session, place, inputs, graphs
        self._names = [port.name for port in session.get_outputs()]
        self._binding = session.io_binding()
        self._outputs: dict[str, OrtValue] = {}
        self._graph = None if graphs is None else next(graphs)
        if outputs is None:  # ONNX Runtime knows their shapes, and makes them in the first run
            for name in self._names:
                self._binding.bind_output(name, *place)
        else:
            self._keep(outputs)

    def fill(self, feeds: Feeds) -> None:
        """Put new values where the old ones were."""
        for name, value in feeds.items():
            self._inputs[name].update_inplace(numpy.asarray(value, order="C"))

    def run(self) -> None:
        """Run the session, and wait for it."""
        for name, value in self._inputs.items():
            # Each time: what a kernel wants elsewhere, ONNX Runtime copies there now, and never looks again.
            self._binding.bind_ortvalue_input(name, value)
        graph = self._graph if self._outputs or self._graph is None else UNCAPTURED
        self._session.run_with_iobinding(self._binding, quiet(graph))
        self._binding.synchronize_outputs()
        if not self._outputs:
            self._keep(dict(zip(self._names, self._binding.get_outputs(), strict=True)))

    def outputs(self) -> list[Array]:
        """Copies of what the last run wrote."""
        arrays = [self._outputs[name].numpy() for name in self._names]
        return [array.copy() for array in arrays] if self._place[0] == "cpu" else arrays  # there they are views

    def replays(self) -> Iterator[_BufferSet]:
        """Run this, then from where it leads back into its own input, and so on; each lap as it has run."""
        while True:
            self.run()
            yield self
            self._back.run()
            yield self._back

    @functools.cached_property
    def _back(self) -> _BufferSet:
        here, there = self._inputs[_STATE], self._outputs[_SUCCESSOR]
        inputs, outputs = {**self._inputs, _STATE: there}, {**self._outputs, _SUCCESSOR: here}
        return _BufferSet(self._session, self._place, inputs, self._graphs, outputs)

    def _keep(self, outputs: dict[str, OrtValue]) -> None:
        """Write to these from now on."""
        self._outputs = outputs
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)


def _kind(feeds: Feeds) -> Any:
    """What buffers and graphs are for: which inputs are given, their shapes and dtypes, and sizes themselves."""
    return tuple(
        (name, value.shape, value.dtype.str, int(value) if _sizes(value) else None)
        for name, value in sorted(feeds.items())
    )


def _sizes(value: Array) -> bool:
    """Whether it is a whole number, such as a count of steps."""
    return not value.ndim and value.dtype.kind in "iub"
