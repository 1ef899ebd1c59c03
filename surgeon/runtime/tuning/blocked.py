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

from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from surgeon.runtime.tuning.graph_rewriter import GraphRewriter, Shape

_ENTER = {"Conv", "MaxPool", "AveragePool"}  # blocked, whatever they are given
_STAY = {"Add", "BatchNormalization", "Concat", "Mul", "Relu", "Sigmoid"}  # blocked, if what they are given is
_FUSED = {"Clip", "HardSigmoid", "LeakyRelu"}  # blocked, if a convolution that nobody else reads comes before
_OUTSIDE = {"ConvTranspose", "Expand", "Pad"}  # never blocked


def keep_blocked(graph: GraphProto) -> dict[str, int]:
    """Rewrite `graph` as above, in place; return how often each rewrite applied.

    Keys: "broadcast_scale", "const_scale", "fuse_activation", "reblock".

    Its first input of four dimensions says which batch is meant. No value changes.
    """
    walk = _Walk(graph)
    for node in list(graph.node):
        walk.visit(node)
    walk.finish()
    read = {name for node in graph.node for name in node.input}
    for initializer in [initializer for initializer in graph.initializer if initializer.name in walk.scalars]:
        if initializer.name not in read:
            graph.initializer.remove(initializer)
    return walk.counts


class _Walk(GraphRewriter):
    """One pass over a graph in the order of its nodes, which knows what is blocked."""

    def __init__(self, graph: GraphProto) -> None:
        super().__init__(graph, "blocked")
        # Weights may lie in another file; no scalar does.
        self.scalars = {
            initializer.name: float(numpy_helper.to_array(initializer))
            for initializer in graph.initializer
            if not initializer.dims and initializer.data_type == TensorProto.FLOAT
        }
        self._blocked: set[str] = set()
        self.counts = {"broadcast_scale": 0, "const_scale": 0, "fuse_activation": 0, "reblock": 0}

    def visit(self, node: NodeProto) -> None:
        """Write `node` behind the nodes that were visited before, and before it those that keep it blocked."""
        if node.op_type in ("Add", "Mul") and self._keep(node):
            return
        if node.op_type in _FUSED and node.input[0] in self._blocked and self.readers[node.input[0]] > 1:
            node.input[0] = self.multiplied(node.input[0], 1, f"{node.input[0]}/again", node)
            self.counts["fuse_activation"] += 1
        self.write(node)

    def write(self, node: NodeProto) -> None:
        """Write `node`, and note whether its result is blocked."""
        super().write(node)
        tensors = [name for name in node.input if len(self.shapes.get(name, ())) == 4]
        stays = node.op_type in _STAY | _FUSED and self._blocked.issuperset(tensors)
        if (node.op_type in _ENTER or stays) and self.is_image(node.output[0]):
            self._blocked.add(node.output[0])

    def _keep(self, node: NodeProto) -> bool:
        """Give `node`, a sum or product of a blocked tensor, another operand that is; whether it is written so."""
        for i, name in enumerate(node.input):
            other = node.input[1 - i]
            if other not in self._blocked:
                continue
            if node.op_type == "Mul" and self.shapes.get(name) == () and name in self.makers:
                node.input[i] = self.spread(name, self.shapes[other], node)
                self.counts["broadcast_scale"] += 1
            elif node.op_type == "Mul" and name in self.scalars:
                self.multiplied(other, self.scalars[name], node.output[0], node)
                self.counts["const_scale"] += 1
                return True
            elif self._maker(name) in _OUTSIDE and self.shapes.get(name) == self.shapes[other]:
                node.input[i] = self._enter(name, self.shapes[name], node)
                self.counts["reblock"] += 1
        return False

    def _maker(self, name: str) -> str:
        return self.makers[name].op_type if name in self.makers else ""

    def _enter(self, tensor: str, shape: Shape, like: NodeProto) -> str:
        return self.add("AveragePool", [tensor], f"{tensor}/blocked", like, shape, kernel_shape=[1, 1])
