"""Weights that several ONNX files of a bundle have in common, stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, set_external_data

_ALIGNED = 4096
"""Bytes: where a tensor that is appended begins, a page, so that a runtime may map it."""


def share_weights(model: ModelProto, stored: ModelProto, folder: Path, own: str, shared: str) -> None:
    """Let `model` read from the file `shared` in `folder` what it has in `own`, which is removed.

    What `stored`, a model of that folder, has there already is known by its bytes, and whatever is new is appended.
    """
    known: dict[bytes, tuple[int, int]] = {}
    for tensor, data in _external(stored, folder):
        info = ExternalDataInfo(tensor)
        known[hashlib.sha256(data).digest()] = (info.offset or 0, len(data))
    for tensor, data in _external(model, folder):
        digest = hashlib.sha256(data).digest()
        if digest not in known:
            known[digest] = (appended(folder / shared, data), len(data))
        offset, length = known[digest]
        refer(tensor, shared, offset, length)
    (folder / own).unlink(missing_ok=True)


def refer(tensor: TensorProto, file: str, start: int, length: int) -> None:
    """Let `tensor` read `length` bytes from `start` of `file`, which lies beside its model."""
    tensor.raw_data = b""  # which set_external_data wants to see
    set_external_data(tensor, file, start, length)
    tensor.ClearField("raw_data")


def appended(path: Path, data: bytes) -> int:
    """Where `data` begins in the file at `path`, now that it is there."""
    with path.open("ab") as file:
        file.write(b"\0" * (-file.tell() % _ALIGNED))
        start = file.tell()
        file.write(data)
    return start


def _external(model: ModelProto, folder: Path) -> Iterator[tuple[TensorProto, bytes]]:
    """The initializers of `model` that lie in files, with their bytes."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            with (folder / info.location).open("rb") as file:
                file.seek(info.offset or 0)
                yield tensor, file.read(-1 if info.length is None else info.length)
