"""The nodes of an artifact that ONNX Runtime leaves on the CPU in a session on a GPU. Torch-free.

Arithmetic on sizes belongs on the CPU: its tensors are a few integers, and ONNX Runtime puts it there on purpose. Any
other node on the CPU copies activations there and back, silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import GraphProto, TensorProto

from surgeon.runtime.graphs import graphs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from surgeon.runtime.providers import Device

_INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}


def off_device(path: Path, session: InferenceSession, device: Device) -> tuple[str, ...]:
    """The nodes of the ONNX file `path`, as "Operator (name)", that `session` runs on the CPU beside a GPU.

    Arithmetic on sizes is left out: nodes whose results are all integers of at most one dimension.
    """
    on_cpu = [] if device.name == "cpu" else _assigned(session, ["CPUExecutionProvider"])
    if not on_cpu:
        return ()
    sizes = _of_sizes(path)
    return tuple(f"{node.op_type} ({node.name})" for node in on_cpu if node.name not in sizes)


def fallback(session: InferenceSession, device: Device) -> tuple[str, ...]:
    """The nodes that `session` leaves to a fallback of the provider of `device`, such as CUDA behind TensorRT."""
    providers = [*device.chain][1:]
    return tuple(f"{node.op_type} ({node.name})" for node in (_assigned(session, providers) if providers else []))


def _assigned(session: InferenceSession, providers: Sequence[str]) -> list[Any]:
    """The nodes that run on one of `providers`."""
    assignments = session.get_provider_graph_assignment_info()
    return [node for assigned in assignments if assigned.ep_name in providers for node in assigned.get_nodes()]


def _of_sizes(path: Path) -> set[str]:
    """Names of the nodes that do arithmetic on sizes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    return {name for graph in graphs(model.graph) for name in _of_sizes_in(graph)}


def _of_sizes_in(graph: GraphProto) -> Iterator[str]:
    few = {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type in _INTEGERS and len(value.type.tensor_type.shape.dim) <= 1
    }
    for node in graph.node:
        if node.name and few.issuperset(node.output):  # a nameless node on sizes must not excuse other nameless nodes
            yield node.name
