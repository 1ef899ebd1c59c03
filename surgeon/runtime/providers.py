"""ONNX Runtime sessions on the requested execution provider, and on no other. Torch-free."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.errors import OptionError, ProviderError, SurgeonError, first_line
from surgeon.runtime.graphs import names_read, needed, stored_outside
from surgeon.runtime.tuning import tuned

if TYPE_CHECKING:
    import onnxruntime
    from onnx import ModelProto


class _Provider(NamedTuple):
    """An execution provider of ONNX Runtime: its default options, the memory of its values, and the libraries it needs.

    Nodes that it does not take go to the device `fallback`, where there is one.
    """

    name: str
    options: dict[str, str]
    memory: str
    needs: str = ""
    fallback: str = ""


_PROVIDERS = {
    "cpu": _Provider("CPUExecutionProvider", {}, "cpu"),
    # TF32 keeps 10 bits of a mantissa: too few for gates whose pre-activation is near zero.
    "cuda": _Provider("CUDAExecutionProvider", {"use_tf32": "0"}, "cuda", "the CUDA and cuDNN"),
    "tensorrt": _Provider("TensorrtExecutionProvider", {}, "cuda", "the CUDA, cuDNN and TensorRT", fallback="cuda"),
}
DEVICES = tuple(_PROVIDERS)
_ERRORS_ONLY = 3  # ONNX Runtime warns of every input with a default, and the contract has such inputs
_NOTHING = 4
_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")
_COMPLAINT = re.compile(r'(?:Unknown|Failed to parse) provider option:? "[^"]*"|Invalid \w+ EP option.*')


@dataclass(frozen=True)
class Device:
    """Where artifacts run: a name of DEVICES, and options for ONNX Runtime's provider on top of surgeon's own.

    Raises SurgeonError for an unknown device, OptionError for options where the provider takes none. A provider refuses
    an unknown option when a session is opened.
    """

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in _PROVIDERS:
            raise SurgeonError(f"there is no device {self.name!r}", f"Choose one of {', '.join(DEVICES)}")
        if self.given and self.name == "cpu":
            raise OptionError(
                f"the CPU provider takes no options, and {', '.join(self.given)} was given",
                "Leave it out, or name another device",
            )

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of it."""
        return _PROVIDERS[self.name].name

    @property
    def memory(self) -> str:
        """The memory of its values, "cpu" or "cuda", as ONNX Runtime and PyTorch name it."""
        return _PROVIDERS[self.name].memory

    @property
    def index(self) -> int:
        """The number of the GPU, where there are several."""
        number = self.options.get("device_id", "0")
        return int(number) if number.isdecimal() else 0  # ONNX Runtime refuses the rest

    @property
    def options(self) -> dict[str, str]:
        """All options of the provider."""
        return {**_PROVIDERS[self.name].options, **{key: str(value) for key, value in self.given.items()}}

    @property
    def chain(self) -> dict[str, dict[str, str]]:
        """The providers by name, each with its options: the requested one, then its fallback."""
        fallback = _PROVIDERS[self.name].fallback
        return {self.provider: self.options, **(Device(fallback).chain if fallback else {})}

    @property
    def captures(self) -> bool:
        """Whether runs are captured in CUDA graphs, which cannot hold control flow."""
        return any(self._is_on(key) for key in _GRAPHS)

    @property
    def uncaptured(self) -> Device:
        """The same without CUDA graphs."""
        return Device(self.name, {key: value for key, value in self.given.items() if key not in _GRAPHS})

    @property
    def tf32(self) -> bool:
        """Whether products of float32 keep 10 bits of a mantissa; TensorRT's do, unless the environment forbids it."""
        if self.name == "tensorrt":
            return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
        return self._is_on("use_tf32")

    def _is_on(self, key: str) -> bool:
        return self.options.get(key, "0").lower() in ("1", "true")


CPU = Device("cpu")


def open_session(
    path: Path,
    device: Device,
    threads: int | None,
    *,
    tuning: bool = True,
    temperature: float | None = None,
    outputs: Sequence[str] = (),
    trace: Path | None = None,
    spinning: bool = True,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session that runs on `device` or raises ProviderError; it never falls back to another.

    On the CPU the session runs an artifact as rewritten by `surgeon.runtime.tuning`, and at the `temperature` alone if
    there is one: then the session has no such input. Without `tuning`, and on a GPU, it runs the file unchanged. With
    `outputs` it computes these alone: the rest of the graph is cut off before it is loaded, and its weights stay on
    disk. With `trace`, ONNX Runtime writes a profile to files of that name. `spinning` threads wait for work at a
    core's full speed, for 50 ms after a run, which disturbs others that want the cores in between. Raises OptionError
    for options that the provider does not take, or that this file cannot be run with.
    """
    import onnxruntime

    settings, on_cpu = onnxruntime.SessionOptions(), device.name == "cpu"
    settings.log_severity_level = _ERRORS_ONLY
    # A pullback keeps every pre-activation until its gate is passed, and the static plan for reusing buffers handles
    # that badly: without the plan DenseNet121 at batch 8 peaks at 1.4 GB instead of 2.6 GB, and is 4% faster.
    settings.enable_mem_reuse = False
    # From a record of the first run it allocates one block for all of the second, beside the first: half as much again.
    settings.enable_mem_pattern = False
    if trace is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(trace)
    if not spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        settings.intra_op_num_threads = threads
    if not on_cpu:
        require_provider(device)
        settings.log_severity_level = _NOTHING  # what is wrong is raised
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        source: str | bytes = str(path)
        model = _cut(path, outputs) if outputs else None
        if tuning and on_cpu:
            model = tuned(path, temperature, threads, model) or model
        if model is not None:
            folder = _weights_folder(model, path.parent)
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            source = model.SerializeToString()
            del model
        with contextlib.nullcontext() if on_cpu else _quiet(onnxruntime):
            # Its Python falls back to the CPU otherwise, where an option is unknown or, later, where a run fails.
            session = onnxruntime.InferenceSession(
                source, settings, providers=list(device.chain.items()), enable_fallback=False
            )
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise _not_loaded(path, device, first_line(error)) from error
    if not set(device.chain) <= set(session.get_providers()):
        raise _no_provider(device)
    del source
    _return_memory()
    return session


def _cut(path: Path, outputs: Sequence[str]) -> ModelProto:
    """The part of the ONNX file `path` that computes `outputs`, without the weights beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph, wanted = model.graph, set(outputs)
    nodes = needed(graph.node, wanted)
    read = wanted.union(names_read(nodes))
    computed = {name for node in nodes for name in node.output}
    parts: list[tuple[Any, list[Any]]] = [
        (graph.node, nodes),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read]),
        (graph.input, [port for port in graph.input if port.name in read]),
        (graph.output, [port for port in graph.output if port.name in wanted]),
        (graph.value_info, [value for value in graph.value_info if value.name in computed]),
    ]
    for entries, kept in parts:
        del entries[:]
        entries.extend(kept)
    return model


def _not_loaded(path: Path, device: Device, message: str) -> SurgeonError:
    """The error for a `message` of ONNX Runtime about loading `path`."""
    if device.name != "cpu" and "Please install" in message:  # TensorRT's; without CUDA the session merely lacks it
        return _no_provider(device)
    if complaint := _COMPLAINT.search(message):
        given = ", ".join(f"{key}={value}" for key, value in device.options.items())
        return OptionError(
            f"{device.provider} does not take the options {given} ({complaint[0]})",
            "ONNX Runtime's documentation of the provider lists its options",
        )
    if device.captures and "graph capture" in message:
        return OptionError(
            f"{path.name} cannot be captured in a CUDA graph ({' '.join(message.rpartition(' : ')[2].split())})",
            "Leave enable_cuda_graph out",
        )
    return SurgeonError(f"ONNX Runtime cannot load {path} ({message})")


def _weights_folder(model: ModelProto, folder: Path) -> Path:
    """The folder of the weights beside an artifact, links resolved; their names in `model` are changed to match.

    ONNX Runtime follows a link beside a file that it reads itself, but refuses one that leads out of a given folder.
    """
    entries = (entry for _, tensor in stored_outside(model) for entry in tensor.external_data)
    places = [entry for entry in entries if entry.key == "location"]
    real = {name: (folder / name).resolve() for name in {place.value for place in places}}
    for place in places:
        place.value = real[place.value].name
    return next((path.parent for path in real.values()), folder)


def _return_memory() -> None:
    """Return freed memory to the system, such as weights in a layout that no kernel uses.

    Otherwise the C library keeps it, beside the pieces that ONNX Runtime then allocates: a quarter of the peak of
    ResNet50's pullback. Only glibc has, and needs, a call for it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def require_provider(device: Device) -> None:
    """Raise ProviderError unless ONNX Runtime lists the provider of `device`; loading it may still fail later."""
    import onnxruntime

    if not set(device.chain) <= set(onnxruntime.get_available_providers()):
        raise _no_provider(device)


def _no_provider(device: Device) -> ProviderError:
    return ProviderError(
        f"the device {device.name!r} is not there: ONNX Runtime cannot use its {device.provider} on this machine",
        f"Choose --device cpu, or install onnxruntime-gpu with {_PROVIDERS[device.name].needs} that it needs",
    )


@contextlib.contextmanager
def _quiet(onnxruntime: Any) -> Iterator[None]:
    """Keep ONNX Runtime's account of a missing CUDA off the screen: `_no_provider` has it in one line."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()  # finds the CUDA and cuDNN of torch's own packages
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # ONNX Runtime's own default; it has no way to ask
