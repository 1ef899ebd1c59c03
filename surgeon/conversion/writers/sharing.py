"""Weights that several ONNX files of a bundle have in common, stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, set_external_data

from surgeon.runtime.graphs import stored_outside

_ALIGNED = 4096
"""Bytes: tensors are appended at multiples of a page, so that a runtime may map them."""


def share_weights(model: ModelProto, stored: ModelProto, folder: Path, own: str, shared: str) -> None:
    """Move the weights of `model` from the file `own` in `folder` to `shared`, and remove `own`.

    Weights that `stored`, a model of that folder, has in `shared` are found by their bytes; the others are appended.
    """
    known: dict[bytes, tuple[int, int]] = {}
    for tensor, data in _outside(stored, folder):
        info = ExternalDataInfo(tensor)
        known[hashlib.sha256(data).digest()] = (info.offset or 0, len(data))
    for tensor, data in _outside(model, folder):
        digest = hashlib.sha256(data).digest()
        if digest not in known:
            known[digest] = (appended(folder / shared, data), len(data))
        offset, length = known[digest]
        refer(tensor, shared, offset, length)
    (folder / own).unlink(missing_ok=True)


def refer(tensor: TensorProto, file: str, start: int, length: int) -> None:
    """Make `tensor` refer to `length` bytes from `start` of `file`, which lies beside its model."""
    tensor.raw_data = b""  # set_external_data refuses a tensor without it
    set_external_data(tensor, file, start, length)
    tensor.ClearField("raw_data")


def appended(path: Path, data: bytes) -> int:
    """Append `data` to the file at `path`; return the offset at which it begins."""
    with path.open("ab") as file:
        file.write(b"\0" * (-file.tell() % _ALIGNED))
        start = file.tell()
        file.write(data)
    return start


def _outside(model: ModelProto, folder: Path) -> Iterator[tuple[TensorProto, bytes]]:
    """The initializers of `model` that lie in files, with their bytes."""
    for _, tensor in stored_outside(model):
        info = ExternalDataInfo(tensor)
        with (folder / info.location).open("rb") as file:
            file.seek(info.offset or 0)
            yield tensor, file.read(-1 if info.length is None else info.length)
