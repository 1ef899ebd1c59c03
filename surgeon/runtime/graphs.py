"""What every reader and writer of ONNX graphs needs: walks, dependencies, copies and renames. Torch-free.

These are functions on protobufs. `onnx_ir` has typed objects for the same graphs, but a session would pay for them each
time that it loads an artifact: for ResNet50's pullback, 70 ms to convert it there and back where reading and writing it
takes 2 ms, and half a second to import the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

Copied = TypeVar("Copied", bound=Message)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside `node`: the body of a loop, the branches of a condition."""
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph`, and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def names_read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Every value that `nodes` read; of the graphs inside them also what these read and return."""
    for node in nodes:
        yield from node.input
        for body in bodies(node):
            yield from names_read(body.node)
            yield from (port.name for port in body.output)


def needed(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes, in order, that the values `outputs` depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(names_read([node]))
    return kept[::-1]


def split_by(nodes: Iterable[NodeProto], names: Iterable[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """(nodes that depend on none of the values `names`, nodes that depend on at least one), each in order."""
    dependent, independent_nodes, dependent_nodes = set(names), [], []
    for node in nodes:
        if dependent.isdisjoint(names_read([node])):
            independent_nodes.append(node)
        else:
            dependent.update(node.output)
            dependent_nodes.append(node)
    return independent_nodes, dependent_nodes


def rename(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Replace, in place, the names of values that `nodes` read and compute."""
    for node in nodes:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = names.get(name, name)


def copied(message: Copied) -> Copied:
    """A copy of a protobuf message: a node, a tensor, a port."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def named(port: ValueInfoProto, name: str) -> ValueInfoProto:
    """A copy of `port` under another name."""
    copy = copied(port)
    copy.name = name
    return copy


def initializers(*of: GraphProto) -> dict[str, TensorProto]:
    """The initializers of these graphs, by name; those of graphs inside them are left out."""
    return {initializer.name: initializer for graph in of for initializer in graph.initializer}


def stored_outside(model: ModelProto) -> Iterator[tuple[GraphProto, TensorProto]]:
    """The tensors of `model` whose values lie in another file, each with the graph that it belongs to."""
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                yield graph, tensor


def shape_of(port: ValueInfoProto) -> list[int | str]:
    """The sizes of `port`, with a name for each one that is free."""
    return [size.dim_param or size.dim_value for size in port.type.tensor_type.shape.dim]


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of the attribute `name` of `node`, or `default`."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)
