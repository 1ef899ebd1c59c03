"""Backward passes that stay in the layout in which ONNX Runtime convolves.

Its CPU provider keeps the tensors between convolutions in blocks of 8 or 16 channels. It has blocked forms of sums and
products of two blocked tensors of one shape, of sigmoid, ReLU and pools, and of little else: all other operators take a
tensor out of the layout, on one core however many there are, and the next convolution takes it back. Three things that
a pullback is full of are put differently here, so that it stays:

- z times 1/T, a tensor by a scalar. The scalar is spread over a tensor of z's shape by a convolution of one plane; a
  constant one is the kernel of a depthwise convolution of one element.
- An activation that it blocks only as part of a convolution, such as clip, where others read what goes into it, too. It
  is given a convolution of its own: depthwise, of one element, by one.
- A blocked tensor that meets one from outside, such as the cotangent that a transposed convolution gives. That one is
  brought in by an average over windows of one element, the cheapest operator that ONNX Runtime blocks by itself.

Shapes count as one if their sizes or names are; `value_info` says them. A GPU, where nothing is blocked, gains nothing
from this and reads a little more.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

LAYOUTS = ("blocked", "plain", "tuned")

_BLOCK = 16  # channels, with AVX-512; a multiple of the blocks of other processors
_ENTER = {"Conv", "MaxPool", "AveragePool"}  # blocked, whatever they are given
_STAY = {"Add", "BatchNormalization", "Concat", "Mul", "Relu", "Sigmoid"}  # blocked, if what they are given is
_FUSED = {"Clip", "HardSigmoid", "LeakyRelu"}  # blocked, if a convolution that nobody else reads comes before
_OUTSIDE = {"ConvTranspose", "Expand", "Pad"}  # never blocked

Shape = tuple[int | str, ...]


def keep_blocked(graph: GraphProto) -> dict[str, int]:
    """Rewrite `graph` as above, in place; how often each was done: "spread", "scaled", "fused", "entered".

    Its first input is the batch of images. No value changes.
    """
    walk = _Walk(graph)
    for node in list(graph.node):
        walk.visit(node)
    del graph.node[:]
    graph.node.extend(walk.nodes)
    read = {name for node in graph.node for name in node.input}
    for initializer in [initializer for initializer in graph.initializer if initializer.name in walk.constants]:
        if initializer.name not in read:
            graph.initializer.remove(initializer)
    return walk.counts


class _Walk:
    """One pass over a graph in the order of its nodes, which collects the nodes of the new one."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._images = graph.input[0].name
        self._shapes: dict[str, Shape] = {
            value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info)
            if value.type.tensor_type.HasField("shape")
        }
        # Weights may lie in another file; no scalar does.
        self.constants = {
            initializer.name: float(numpy_helper.to_array(initializer))
            for initializer in graph.initializer
            if not initializer.dims and initializer.data_type == TensorProto.FLOAT
        }
        self._makers = {name: node.op_type for node in graph.node for name in node.output}
        self._readers = collections.Counter(name for node in graph.node for name in node.input)
        self._blocked: set[str] = set()
        self._made: set[str] = set()
        self.nodes: list[NodeProto] = []
        self.counts = {"spread": 0, "scaled": 0, "fused": 0, "entered": 0}

    def visit(self, node: NodeProto) -> None:
        """Put `node` behind the nodes that were visited before, and before it those that keep it blocked."""
        if node.op_type in ("Add", "Mul"):
            self._keep(node)
        elif node.op_type in _FUSED and node.input[0] in self._blocked and self._readers[node.input[0]] > 1:
            node.input[0] = self._identity(node.input[0], node)
            self.counts["fused"] += 1
        self.nodes.append(node)
        self._follow(node)

    def _follow(self, node: NodeProto) -> None:
        tensors = [name for name in node.input if len(self._shapes.get(name, ())) == 4]
        stays = node.op_type in _STAY | _FUSED and self._blocked.issuperset(tensors)
        if (node.op_type in _ENTER or stays) and self._fits(node.output[0]):
            self._blocked.add(node.output[0])

    def _keep(self, node: NodeProto) -> None:
        for i, name in enumerate(node.input):
            other = node.input[1 - i]
            if other not in self._blocked:
                continue
            if node.op_type == "Mul" and self._shapes.get(name) == () and name in self._makers:
                node.input[i] = self._spread(name, self._shapes[other], node)
                self.counts["spread"] += 1
            elif node.op_type == "Mul" and name in self.constants:
                self._scale(node, other, self.constants[name])
                self.counts["scaled"] += 1
                return
            elif self._makers.get(name) in _OUTSIDE and self._shapes.get(name) == self._shapes[other]:
                node.input[i] = self._enter(name, node)
                self.counts["entered"] += 1

    def _fits(self, tensor: str) -> bool:
        """Whether `tensor` is [N, C, H, W] with whole blocks of channels."""
        batch, *sizes = self._shapes.get(tensor) or ("",)
        known = len(sizes) == 3 and all(isinstance(size, int) for size in sizes)
        return known and batch == self._shapes[self._images][0] and sizes[0] % _BLOCK == 0

    def _enter(self, tensor: str, reader: NodeProto) -> str:
        name = f"{tensor}/blocked"
        self._make("AveragePool", [tensor], name, reader, self._shapes[tensor], kernel_shape=[1, 1])
        return name

    def _identity(self, tensor: str, reader: NodeProto) -> str:
        channels, name = self._shapes[tensor][1], f"{tensor}/again"
        self._make("Conv", [tensor, self._ones(channels, reader)], name, reader, self._shapes[tensor], group=channels)
        return name

    def _spread(self, scalar: str, shape: Shape, reader: NodeProto) -> str:
        batch, channels, *size = shape
        plane = f"{scalar}/{'x'.join(map(str, size))}"
        name = f"{scalar}/{'x'.join(map(str, shape[1:]))}"
        batches = f"{self._images}/batch"
        self._make("Shape", [self._images], batches, reader, None, start=0, end=1)
        self._make("Concat", [batches, self._sizes(1, *size)], f"{plane}/shape", reader, None, axis=0)
        self._make("Expand", [scalar, f"{plane}/shape"], plane, reader, (batch, 1, *size))
        self._make("Conv", [plane, self._ones(channels, reader)], name, reader, shape)
        return name

    def _scale(self, node: NodeProto, tensor: str, factor: float) -> None:
        """Make of `node`, a product, the depthwise convolution that is the same."""
        channels = self._shapes[tensor][1]
        node.op_type = "Conv"
        node.input[:] = [tensor, self._filled(factor, channels, node)]
        node.attribute.append(helper.make_attribute("group", channels))

    def _ones(self, channels: int | str, reader: NodeProto) -> str:
        return self._filled(1.0, channels, reader)

    def _filled(self, value: float, channels: int | str, reader: NodeProto) -> str:
        """The kernels of a depthwise convolution of one element."""
        name = f"ones/{channels}" if value == 1 else f"{value:.9g}/{channels}"
        filling = numpy_helper.from_array(numpy.array([value], numpy.float32))
        self._make("ConstantOfShape", [self._sizes(channels, 1, 1, 1)], name, reader, None, value=filling)
        return name

    def _make(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        reader: NodeProto,
        shape: Shape | None,
        **attributes: Any,
    ) -> None:
        """Add a node, if it is not there yet; its role is that of `reader`, the first that it serves."""
        if output in self._made:
            return
        self._made.add(output)
        node = helper.make_node(operator, inputs, [output], name=output, **attributes)
        node.metadata_props.extend(reader.metadata_props)
        self.nodes.append(node)
        if shape is not None:
            self._shapes[output] = shape
            self._graph.value_info.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
        self._follow(node)

    def _sizes(self, *sizes: int | str) -> str:
        name = f"sizes/{'x'.join(map(str, sizes))}"
        if name not in self._made:
            self._made.add(name)
            self._graph.initializer.append(numpy_helper.from_array(numpy.array(sizes, numpy.int64), name))
        return name
