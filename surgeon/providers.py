"""ONNX Runtime sessions on the execution provider that was asked for, and on no other. Torch-free."""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import ProviderError, SurgeonError
from surgeon.placement import graphs
from surgeon.tuning import tuned

if TYPE_CHECKING:
    import onnxruntime
    from onnx import ModelProto

_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # TF32 keeps 10 bits of a mantissa: too few for gates whose pre-activation is near zero.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}
DEVICES = tuple(_PROVIDERS)
_ERRORS_ONLY = 3  # ONNX Runtime warns of every input with a default, and the contract has such inputs


def open_session(
    path: Path,
    device: str,
    threads: int | None,
    *,
    tuning: bool = True,
    temperature: float | None = None,
    trace: Path | None = None,
    spinning: bool = True,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session that runs on `device` or raises ProviderError; it never falls back to another.

    On the CPU, an artifact is run as `surgeon.tuning` puts it, if it does, and at the `temperature` alone if one is
    given: then the session has no such input. Without `tuning`, and on a GPU, the file is run as it is.
    With `trace`, ONNX Runtime writes a profile to files of that name. `spinning` threads wait for work at a core's full
    speed, for 50 ms after a run, which is a disturbance where others want the cores in between.
    """
    import onnxruntime

    provider, options = _PROVIDERS[device]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    # A pullback keeps every pre-activation until its gate is passed. The static plan for reusing buffers copes badly:
    # without it DenseNet121 at batch 8 peaks at 1.4 GB where it took 2.6 GB, and is 4% faster.
    settings.enable_mem_reuse = False
    # Its record of the first run takes one block for all of the second, beside what the first took: half as much again.
    settings.enable_mem_pattern = False
    if trace is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(trace)
    if not spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        settings.intra_op_num_threads = threads
    if device != "cpu":
        require_provider(device)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        source: str | bytes = str(path)
        if tuning and device == "cpu" and (model := tuned(path, temperature, threads)) is not None:
            folder = _weights_folder(model, path.parent)
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            source = model.SerializeToString()
            del model
        with _quiet(onnxruntime) if device == "cuda" else contextlib.nullcontext():
            session = onnxruntime.InferenceSession(source, settings, providers=[(provider, options)])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise SurgeonError(f"ONNX Runtime cannot load {path} ({first_line(error)})") from error
    if provider not in session.get_providers():
        raise _no_provider(device)
    del source
    _return_memory()
    return session


def _weights_folder(model: ModelProto, folder: Path) -> Path:
    """Where the weights beside an artifact are, and are named so in `model`: they may be links to another folder.

    ONNX Runtime follows links from a file that it reads itself, and takes them for an escape from a folder it is given.
    """
    kept = (initializer.external_data for graph in graphs(model.graph) for initializer in graph.initializer)
    places = [entry for entries in kept for entry in entries if entry.key == "location"]
    real = {name: (folder / name).resolve() for name in {place.value for place in places}}
    for place in places:
        place.value = real[place.value].name
    return next((path.parent for path in real.values()), folder)


def _return_memory() -> None:
    """Give back what loading took and has freed, such as weights in a layout that no kernel wants.

    The C library keeps it otherwise, beside what ONNX Runtime then takes in pieces of its own: of ResNet50's pullback,
    a quarter of the peak. Only glibc has, and needs, a call for it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def require_provider(device: str) -> None:
    """Raise ProviderError unless ONNX Runtime lists the provider of `device`; whether it loads is known later."""
    import onnxruntime

    if _PROVIDERS[device][0] not in onnxruntime.get_available_providers():
        raise _no_provider(device)


def provider(device: str) -> str:
    """ONNX Runtime's name of the provider for `device`."""
    return _PROVIDERS[device][0]


def _no_provider(device: str) -> ProviderError:
    return ProviderError(
        f"the device {device!r} is not there: ONNX Runtime cannot use its {_PROVIDERS[device][0]} on this machine",
        "Choose --device cpu, or install onnxruntime-gpu with the CUDA and cuDNN that it needs",
    )


@contextlib.contextmanager
def _quiet(onnxruntime: Any) -> Iterator[None]:
    """Keep ONNX Runtime's account of a missing CUDA off the screen: `_no_provider` says it in a line."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()  # finds the CUDA and cuDNN of torch's own packages
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # ONNX Runtime's own default; it has no way to ask


def first_line(error: Exception) -> str:
    """What an exception of ONNX Runtime says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]
