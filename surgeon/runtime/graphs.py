"""Walks over ONNX graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnx import GraphProto

if TYPE_CHECKING:
    pass


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
