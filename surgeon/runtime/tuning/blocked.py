"""Rewrite backward passes so that they stay in ONNX Runtime's blocked layout.

The CPU provider keeps the tensors between convolutions in blocks of 8 or 16 channels. It has blocked forms of sums and
products of two blocked tensors of one shape, of sigmoid, ReLU and pools, and of little else: every other operator takes
a tensor out of the layout, on one core however many there are, and the next convolution takes it back in. Three things
that a pullback has in large numbers are rewritten here so that it stays in the layout:

- z times 1/T, a tensor by a scalar. A convolution of one plane broadcasts the scalar to a tensor of z's shape
  ("broadcast_scale"); a constant scalar is the kernel of a depthwise convolution of one element ("const_scale").
- An activation that is blocked only as part of a convolution, such as clip, and whose input has other readers. It gets
  a convolution of its own: depthwise, of one element, by one ("fuse_activation").
- A sum or product of a blocked tensor and one from outside, such as the cotangent that a transposed convolution gives.
  An average over windows of one element brings that one in: the cheapest operator that is always blocked ("reblock").

Two shapes are the same if their sizes, or the names of their sizes, are; `value_info` holds them. On a GPU, where
nothing is blocked, this gains nothing and reads a little more.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from surgeon.runtime.tuning.graph_rewriter import GraphRewriter, Shape

_ENTER = {"Conv", "MaxPool", "AveragePool"}  # blocked, whatever their input is
_STAY = {"Add", "BatchNormalization", "Concat", "Mul", "Relu", "Sigmoid"}  # blocked if their inputs are
_FUSED = {"Clip", "HardSigmoid", "LeakyRelu"}  # blocked behind a convolution that has no other reader
_OUTSIDE = {"ConvTranspose", "Expand", "Pad"}  # never blocked


def keep_blocked(graph: GraphProto) -> dict[str, int]:
    """Rewrite `graph` as above, in place, without changing a value; return how often each rewrite applied.

    The batch is the first size of the graph's first input of four dimensions.
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
    """One pass over a graph in the order of its nodes that keeps track of blocked tensors."""

    def __init__(self, graph: GraphProto) -> None:
        super().__init__(graph, "blocked")
        # Weights may lie in another file, scalars do not.
        self.scalars = {
            initializer.name: float(numpy_helper.to_array(initializer))
            for initializer in graph.initializer
            if not initializer.dims and initializer.data_type == TensorProto.FLOAT
        }
        self._blocked: set[str] = set()
        self.counts = {"broadcast_scale": 0, "const_scale": 0, "fuse_activation": 0, "reblock": 0}

    def visit(self, node: NodeProto) -> None:
        """Write `node` behind the nodes visited before, preceded by nodes that keep it blocked."""
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
        """Block the other operand of `node`, a sum or product of a blocked tensor; return whether that wrote `node`."""
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
