"""Store the weights of a bundle's ONNX files as float16, and in shards that a web host accepts. Torch-free."""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
from onnx import GraphProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from surgeon.conversion.writers.sharing import appended, refer
from surgeon.errors import SurgeonError
from surgeon.runtime.graphs import stored_outside

_MEGABYTE = 10**6


def store_again(folder: Path, weights: str, halves: bool, most: int | None) -> None:
    """Replace the file `weights` in `folder`, and make the ONNX files there refer to what took its place.

    With `halves`, float32 tensors are stored as float16, and a Cast at the beginning of the graph widens each: the
    arithmetic stays in float32, and ONNX Runtime casts once, as it loads. With `most`, in MB, the weights are in files
    STEM-1, STEM-2 and so on, each at most that large unless a single tensor is larger. Raises SurgeonError for a weight
    that is too large for float16.
    """
    models = {path: onnx.load(path, load_external_data=False) for path in sorted(folder.glob("*.onnx"))}
    readers: dict[tuple[int, int], list[tuple[GraphProto, TensorProto]]] = {}  # by offset and length
    for model in models.values():
        for graph, tensor in stored_outside(model):
            info = ExternalDataInfo(tensor)
            if info.location != weights:
                continue
            readers.setdefault((info.offset or 0, info.length or 0), []).append((graph, tensor))
    data = (folder / weights).read_bytes()
    (folder / weights).unlink()
    number = 1
    for (offset, length), tensors in sorted(readers.items()):
        values = data[offset : offset + length]
        halved = halves and tensors[0][1].data_type == TensorProto.FLOAT
        if halved:
            values = _halved(values, tensors[0][1].name)
        path = folder / weights
        if most is not None:
            stem = path.stem
            path = path.with_stem(f"{stem}-{number}")
            if path.exists() and path.stat().st_size + len(values) > most * _MEGABYTE:
                number += 1
                path = path.with_stem(f"{stem}-{number}")
        start = appended(path, values)
        for graph, tensor in tensors:
            if halved:
                _widen(graph, tensor)
            refer(tensor, path.name, start, len(values))
    for path, model in models.items():
        onnx.save(model, path)


def _halved(values: bytes, name: str) -> bytes:
    single = numpy.frombuffer(values, "<f4")
    with numpy.errstate(over="ignore"):
        half = single.astype("<f2")
    if (numpy.isinf(half) & numpy.isfinite(single)).any():
        raise SurgeonError(f"{name} has values that are too large for float16", "Store the weights in fp32")
    return half.tobytes()


def _widen(graph: GraphProto, tensor: TensorProto) -> None:
    """Store `tensor` of `graph` as float16, with a Cast of its name in its place."""
    name = tensor.name
    tensor.name, tensor.data_type = f"{name}/half", TensorProto.FLOAT16
    cast = helper.make_node("Cast", [tensor.name], [name], name=f"{name}/widened", to=TensorProto.FLOAT)
    graph.node.insert(0, cast)
    graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, tensor.dims))
