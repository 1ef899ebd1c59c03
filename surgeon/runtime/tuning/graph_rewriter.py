"""Rewrite an ONNX graph: take its nodes in order, and write them, or others in their place, one behind the other."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from surgeon.runtime.graphs import bodies, initializers, needed

Shape = tuple[int | str, ...]

BLOCK = 16
"""Channels in one block of ONNX Runtime's CPU layout with AVX-512; a multiple of the blocks of other processors."""


class GraphRewriter:
    """The values of `graph`, with their shapes and makers, and the nodes written so far."""

    def __init__(
        self,
        graph: GraphProto,
        prefix: str,
        *,
        threads: int = 1,
        soft: bool = False,
        inverse: Mapping[str, float] | None = None,
    ) -> None:
        self.graph = graph
        self.threads = threads  # of the session that will run it
        self.inverse = inverse or {}  # values, here or outside a loop, that equal 1/T
        self.soft = soft  # no gate jumps, so other rounding in the forward pass does no harm
        self.nodes: list[NodeProto] = []
        self.shapes: dict[str, Shape] = {
            value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self.images = next((value.name for value in graph.input if len(self.shapes.get(value.name, ())) == 4), "")
        self.makers = {name: node for node in graph.node for name in node.output}
        # New names: a loop's body may use no name from outside, and a graph may have been rewritten before.
        self._prefix = f"{prefix}/{self.images}/"
        while any(name.startswith(self._prefix) for name in self.makers):
            self._prefix = f"again/{self._prefix}"
        self.readers = collections.Counter(name for node in graph.node for name in node.input)
        self.readers.update(value.name for value in graph.output)
        self.done: set[str] = set()  # results of later nodes that are written already
        self._values = initializers(graph)
        self._constants = {*self._values} - {port.name for port in graph.input}
        self._written = set(self._constants)
        for node in graph.node:
            self._note_constant(node)

    def finish(self) -> None:
        """Put the written nodes into the graph, except those whose results nobody reads.

        ONNX Runtime would run them, and keep their results until the end.
        """
        kept = needed(self.nodes, [value.name for value in self.graph.output])
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def write(self, node: NodeProto) -> None:
        """Write `node`, an old or a new one, behind all nodes written so far."""
        self.nodes.append(node)
        self._note_constant(node)

    def _note_constant(self, node: NodeProto) -> None:
        """A result computed from constants alone is a constant, except that of a loop."""
        if not any(bodies(node)) and self._constants.issuperset(filter(None, node.input)):
            self._constants.update(node.output)

    def is_constant(self, name: str) -> bool:
        """Whether the value `name` depends on no input of the graph."""
        return name in self._constants

    def is_image(self, name: str) -> bool:
        """Whether `name` is [N, C, H, W] of the batch, of known sizes and with whole blocks of channels."""
        batch, *sizes = self.shapes.get(name) or ("",)
        known = len(sizes) == 3 and all(isinstance(size, int) for size in sizes)
        return known and bool(self.images) and batch == self.shapes[self.images][0] and int(sizes[0]) % BLOCK == 0

    def image(self, name: str) -> tuple[int | str, int, int, int]:
        """The shape of an image of known sizes: N, C, H, W."""
        batch, *sizes = self.shapes[name]
        channels, height, width = (int(size) for size in sizes)
        return batch, channels, height, width

    @staticmethod
    def is_backward(node: NodeProto) -> bool:
        """Whether `node` belongs to the backward pass."""
        return any(prop.key == "surgeon.role" and prop.value == "backward" for prop in node.metadata_props)

    def cut_behind(self, name: str) -> tuple[str, tuple[int, int]]:
        """The result of a crop that alone reads `name`, or `name`; and the rows and columns cut off before it."""
        readers = [node for node in self.graph.node if name in node.input]
        if len(readers) != 1 or self.readers[name] != 1 or readers[0].op_type != "Pad":
            return name, (0, 0)
        widths = self._values.get(readers[0].input[1])
        if widths is None or widths.external_data or any(readers[0].input[3:]):
            return name, (0, 0)
        amounts = numpy_helper.to_array(widths).tolist()
        if len(amounts) != 8 or any(amounts[axis] for axis in (0, 1, 4, 5)) or max(amounts) > 0:
            return name, (0, 0)
        return readers[0].output[0], (-amounts[2], -amounts[3])

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str,
        like: NodeProto,
        shape: Shape | None = None,
        **attributes: Any,
    ) -> str:
        """Write a node with the result `output`, behind a prefix, unless there is one already; return that name.

        `like` is the node that it helps to replace; where `output` is the result of `like`, it takes that node's place.
        """
        replaces = output in like.output or output in self.done
        name = output if replaces else self._prefix + output.removeprefix(self._prefix)
        if name in self._written:
            return name
        self._written.add(name)
        node = helper.make_node(operator, inputs, [name], name=like.name if replaces else name, **attributes)
        node.metadata_props.extend(like.metadata_props)
        self.makers[name] = node
        if shape is not None and not replaces:
            self.shapes[name] = shape
            self.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.write(node)
        return name

    def constant(self, name: str, value: Any, dtype: Any = numpy.float32) -> str:
        """The initializer `name`, behind a prefix; it is added unless there is one already."""
        name = self._prefix + name
        if name not in self._written:
            self._written.add(name)
            self._constants.add(name)
            self.graph.initializer.append(numpy_helper.from_array(numpy.array(value, dtype), name))
        return name

    def sizes(self, *sizes: int) -> str:
        """The int64 tensor of `sizes`."""
        return self.constant(f"sizes/{'x'.join(map(str, sizes))}", sizes, numpy.int64)

    def each(self, kernel: str, channels: int, height: int, width: int, like: NodeProto) -> str:
        """`kernel` [1, 1, height, width] for each of `channels`: the weight of a depthwise convolution."""
        sizes = self.sizes(channels, 1, height, width)
        return self.add("Expand", [kernel, sizes], f"{kernel}/{channels}", like)

    def multiplied(self, tensor: str, factor: float, output: str, like: NodeProto) -> str:
        """`tensor` times `factor` as a depthwise convolution of one element, which stays in the blocked layout."""
        channels = self.image(tensor)[1]
        kernel = self.constant(f"times/{factor:.9g}", [[[[factor]]]])
        weight = self.each(kernel, channels, 1, 1, like)
        return self.add("Conv", [tensor, weight], output, like, self.shapes[tensor], group=channels)

    def spread(self, plane: str, shape: Shape, like: NodeProto) -> str:
        """`plane`, [1, 1, H, W] or a scalar, broadcast to `shape` [N, C, H, W] in the blocked layout.

        Broadcasting leaves that layout; a convolution of one plane does not.
        """
        batch, *sizes = shape
        channels, *size = (int(length) for length in sizes)
        area = "x".join(map(str, size))
        count = self.add("Shape", [self.images], f"{self.images}/batch", like, start=0, end=1)
        target = self.add("Concat", [count, self.sizes(1, *size)], f"batch/{area}", like, axis=0)
        planes = self.add("Expand", [plane, target], f"{plane}/{area}", like, (batch, 1, *size))
        ones = self.each(self.constant("times/1", [[[[1.0]]]]), channels, 1, 1, like)
        return self.add("Conv", [planes, ones], f"{plane}/{channels}x{area}", like, shape)
