"""The ONNX files of a bundle as sessions on one device, each opened when it is first run. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from surgeon.bundle.folder import Bundle
from surgeon.bundle.scalars import check_scalar
from surgeon.runtime.batching import BatchSizer
from surgeon.runtime.binding import DeviceSession, HostSession, bind
from surgeon.runtime.placement import fallback, off_device
from surgeon.runtime.providers import Device, open_session
from surgeon.runtime.system_info import cores

FORWARD = "pullback.onnx"
"""The artifact that the forward-only session is cut out of."""


class LoadedArtifacts:
    """The sessions of a bundle's artifacts, kept from their first run on.

    On the CPU the first session of a file is specialised to the first temperature (a few percent faster). A second
    temperature opens one general session. Both are kept.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int | None) -> None:
        self._bundle, self._device, self._threads = bundle, device, threads
        self._at_once = BatchSizer(bundle.manifest, threads or cores())
        self._sessions: dict[tuple[str, float | None], HostSession | DeviceSession] = {}  # by file and temperature
        self._specialised: dict[str, float | None] = {}  # by file, the temperature of its first session
        self._forward: HostSession | DeviceSession | None = None

    def session(self, name: str, temperature: Any = None) -> HostSession | DeviceSession:
        """The session of the file `name` for this `temperature` (None: the default).

        A specialised session has no input of that name.
        """
        manifest = self._bundle.manifest
        at = None
        if (
            self._device.name == "cpu"
            and self.takes_temperature(name)
            and manifest.recipe.temperature_input == "scalar"
        ):
            wanted = manifest.defaults.temperature if temperature is None else check_scalar("temperature", temperature)
            single = float(numpy.float32(wanted))  # as artifacts have it
            at = single if self._specialised.setdefault(name, single) == single else None
        if (name, at) not in self._sessions:
            session = open_session(self._bundle.file(name), self._device, self._threads, temperature=at)
            ports = [*session.get_inputs(), *session.get_overridable_initializers()]
            if at is not None and any(port.name == "temperature" for port in ports):
                self._specialised[name] = at = None  # tuning left it as it was
            self._sessions[name, at] = bind(session, self._device, self._at_once)
        return self._sessions[name, at]

    def forward(self) -> HostSession | DeviceSession:
        """The session of the network alone: the part of FORWARD that computes `output`, without a backward pass."""
        if self._forward is None:
            path = self._bundle.file(FORWARD)
            session = open_session(path, self._device, self._threads, outputs=("output",))
            self._forward = bind(session, self._device, self._at_once)
        return self._forward

    def takes_temperature(self, name: str) -> bool:
        """Whether the bundle holds the artifact `name`, and it takes a temperature, as exported."""
        artifact = self._bundle.manifest.artifacts.get(name)
        return artifact is not None and any(port.name == "temperature" for port in artifact.inputs)

    def off_device(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each artifact, of those that were run, that were left to the CPU beside a GPU."""
        return self._nodes(lambda name, session: off_device(self._bundle.file(name), session, self._device))

    def fallback(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each artifact, of those that were run, that TensorRT left to CUDA."""
        return self._nodes(lambda _, session: fallback(session, self._device))

    def _nodes(self, listed: Callable[[str, Any], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        opened = [(name, bound) for (name, _), bound in self._sessions.items()]
        opened += [(FORWARD, self._forward)] if self._forward is not None else []
        nodes: dict[str, tuple[str, ...]] = {}
        for name, bound in opened:
            nodes[name] = tuple(dict.fromkeys((*nodes.get(name, ()), *listed(name, bound.session))))
        return {name: found for name, found in nodes.items() if found}
