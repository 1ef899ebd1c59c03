"""ONNX Runtime's CUDA graphs by their rules, on the CPU; and a device that is the CPU and taken for a GPU."""

from __future__ import annotations

import onnxruntime
import pytest

from surgeon.runtime import providers
from surgeon.runtime.binding import UNCAPTURED, DeviceSession

GPU = "stub"


class Graphs:
    """A session on the CPU that keeps the rules of ONNX Runtime's CUDA graphs.

    A run with a new id is captured: the addresses that it reads and writes. One with an id that is known replays that,
    at those addresses, whatever is bound now.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.captured, self.ids = session, {}, []

    def __getattr__(self, name: str):
        return getattr(self.session, name)

    def io_binding(self):
        return Recorded(self.session)

    def run_with_iobinding(self, binding: Recorded, options: onnxruntime.RunOptions) -> None:
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        self.ids.append(graph)
        if graph == UNCAPTURED:
            self.session.run_with_iobinding(binding, options)
            return
        assert set(binding.written) == {port.name for port in self.session.get_outputs()}, "outputs without an address"
        read, written = self.captured.setdefault(graph, (dict(binding.read), dict(binding.written)))
        replayed = self.session.io_binding()
        for name, value in read.items():
            replayed.bind_ortvalue_input(name, value)
        for name, value in written.items():
            replayed.bind_ortvalue_output(name, value)
        self.session.run_with_iobinding(replayed)


class Recorded(onnxruntime.IOBinding):
    """A binding that tells the values it reads and writes."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__(session)
        self.read, self.written = {}, {}

    def bind_ortvalue_input(self, name, value):
        super().bind_ortvalue_input(name, value)
        self.read[name] = value

    def bind_ortvalue_output(self, name, value):
        super().bind_ortvalue_output(name, value)
        self.written[name] = value


def pretend(monkeypatch: pytest.MonkeyPatch) -> list[Graphs]:
    """Let GPU be a device, that of the CPU provider; return the sessions that will capture there, as they are made."""
    made, real = [], DeviceSession.__init__

    def made_to_the_rules(
        self: DeviceSession, session: object, device: str, index: int = 0, captures: bool = False
    ) -> None:
        if captures:
            made.append(Graphs(session))
        real(self, made[-1] if captures else session, device, index, captures)

    monkeypatch.setitem(providers._PROVIDERS, GPU, providers._Provider("CPUExecutionProvider", {}, "cpu"))
    monkeypatch.setattr(DeviceSession, "__init__", made_to_the_rules)
    return made
