"""The nodes of an ONNX graph with shapes, multiply-adds, memory and source modules. Torch-free.

Nothing is run, and no weights are read.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from surgeon.analysis.inspect import shape_inference as inference
from surgeon.analysis.inspect.shape_inference import Shape
from surgeon.runtime.graphs import bodies

ROLES = ("forward", "backward", "step")
"""The purpose of a node of an artifact, from its metadata."""

UNMARKED = "unmarked"
"""The role of a node without that metadata."""

_COUNTED = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Node:
    """One node. Counts are for one sample where the batch is free; None where a size that they need is not known."""

    name: str
    operator: str  # with its domain, where that is not ONNX's own
    role: str  # one of ROLES, or UNMARKED
    part: str  # its role; an unmarked node has the part of the nodes it serves, "forward" in files from elsewhere
    module: str  # dotted name of the source module; "" for the root, and where it is not known
    source: str  # the node of the source graph that it came from; where that is not known, itself or what it serves
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: Shape | None  # of the first output; None where that is no tensor, or not known
    sizes: tuple[int, ...] | None  # the same, with numbers for free sizes
    input_types: tuple[int, ...]  # ONNX's element types, one for each argument; 0 where not known
    output_types: tuple[int, ...]
    multiply_adds: int | None
    bytes: int | None  # of its outputs; 0 for constants
    parameters: int  # in the weights that it is the first to read
    constant: bool  # whether it is computed from weights alone
    graph: int  # which of `Structure.graphs` holds it

    @property
    def floating(self) -> bool:
        """Whether its first output holds floating-point numbers."""
        return bool(self.output_types) and self.output_types[0] in _FLOATS


@dataclass(frozen=True)
class GraphStructure:
    """The model's own graph, or the body of a loop or branch."""

    name: str  # of the node whose body it is; "" of the model's own
    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class Structure:
    """The nodes of a model in the file's order, bodies of loops and branches included; each counts once."""

    nodes: tuple[Node, ...]
    parameters: int  # floating-point numbers in initializers, without the defaults of inputs
    batch: int  # of the counts: 1, or the batch that the file fixes
    graphs: tuple[GraphStructure, ...]  # the model's own is the first
    opsets: dict[str, int] = field(default_factory=dict)  # by domain

    def multiply_adds(self, part: str) -> int | None:
        """Of all nodes of that part; None where a size is not known."""
        return total(node.multiply_adds for node in self.nodes if node.part == part)

    def bytes(self, part: str) -> int | None:
        """Of all activations of that part; None where a size is not known."""
        return total(node.bytes for node in self.nodes if node.part == part)


def total(values: Iterable[int | None]) -> int | None:
    """The sum; None where a value is not known."""
    terms = list(values)
    known = [term for term in terms if term is not None]
    return sum(known) if len(known) == len(terms) else None


def figure_text(count: int | None) -> str:
    """A count in three figures, such as 118 M; "?" where it is not known, and nothing for 0."""
    if count is None:
        return "?"
    if count < 1000:
        return str(count) if count else ""
    value, units = float(count), ["", "k", "M", "G", "T", "P"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {units[0]}"


def read(model: ModelProto, sizes: Mapping[str, int] | None = None, input_shape: Shape = ()) -> Structure:
    """The structure of `model`; its weights need not be loaded.

    A free batch counts as 1. Other free sizes take their numbers from `sizes`, by name, or from `input_shape`, the
    shape of one sample of the first input; counts that depend on a size without a number are None.
    """
    light = inference.without_weights(model)
    stated = inference.inferred(light).graph
    known = inference.inferred(inference.with_numbers(light, sizes or {}, input_shape)).graph
    inputs = inference.ports(stated)
    reader = _Reader({value.name for value in inputs})
    reader.read(stated, known, _Scope())
    first = next((value for value in known.input if inputs and value.name == inputs[0].name), None)
    leading = (inference.numbers(first) if first is not None else None) or (1,)
    return Structure(
        nodes=_placed(reader.nodes),
        parameters=sum(reader.counts.values()),
        batch=leading[0],
        graphs=tuple(reader.graphs),
        opsets={entry.domain: entry.version for entry in model.opset_import},
    )


def multiply_adds(
    node: NodeProto, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...] | None
) -> int | None:
    """Multiply-adds of one run of `node`, given sizes; biases are not counted. None where a size is not known.

    A convolution does one for each output and weight of its channel, a transposed convolution for each input and weight
    of its channel, a matrix product for each output and inner index. Other operators count 0.
    """
    if node.op_type not in _COUNTED:
        return 0
    left, right = [*inputs, None, None][:2]
    if left is None or right is None or output is None:
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type in ("Conv", "FusedConv"):
        return math.prod(output) * math.prod(right[1:])
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * (left[0] if turned else left[-1])


# --- reading


@dataclass(frozen=True)
class _Value:
    """The shape and type of a tensor, as far as known."""

    shape: Shape | None
    sizes: tuple[int, ...] | None
    type: int

    @property
    def bytes(self) -> int | None:
        if self.sizes is None or not self.type:
            return None
        try:
            return math.prod(self.sizes) * onnx.helper.tensor_dtype_to_np_dtype(self.type).itemsize
        except (KeyError, TypeError):
            return None


_UNKNOWN = _Value(None, None, 0)

_Weight = tuple[str, int, str]
"""A weight: (file, offset, "") of external data, or ("", graph, name) of an initializer in the model."""

_NO_WEIGHTS: frozenset[_Weight] = frozenset()


@dataclass
class _Scope:
    """The tensors that the nodes of a graph can read: its own, and those of the graphs around it."""

    values: ChainMap[str, _Value] = field(default_factory=ChainMap)
    weights: ChainMap[str, frozenset[_Weight]] = field(default_factory=ChainMap)  # that each constant is computed from

    def inner(self) -> _Scope:
        return _Scope(self.values.new_child(), self.weights.new_child())


class _Reader:
    """Walks the graphs of a model in two versions: as stated, and with numbers for free sizes."""

    def __init__(self, inputs: set[str]) -> None:
        self.nodes: list[Node] = []
        self.graphs: list[GraphStructure] = []
        self.counts: dict[_Weight, int] = {}  # floating-point numbers in each initializer
        self._inputs = inputs
        self._read: set[_Weight] = set()

    def read(self, stated: GraphProto, known: GraphProto, scope: _Scope, name: str = "") -> None:
        """Add the nodes of `stated`, and those of the bodies in it. `known` is the same graph with numbers."""
        place = len(self.graphs)
        takes = inference.ports(stated) if place == 0 else stated.input
        inputs, outputs = (
            tuple((value.name, inference.shape(value) or ()) for value in ports) for ports in (takes, stated.output)
        )
        self.graphs.append(GraphStructure(name, inputs, outputs))
        numbered = {value.name: value for value in (*known.input, *known.value_info, *known.output)}
        for value in (*stated.input, *stated.value_info, *stated.output):
            scope.values[value.name] = _value(value, numbered.get(value.name, value))
        for initializer in stated.initializer:
            self._initializer(initializer, place, scope)
        for number, (node, twin) in enumerate(zip(stated.node, known.node, strict=True)):
            self.nodes.append(self._node(node, number, place, scope))
            for body, other in zip(bodies(node), bodies(twin), strict=True):
                self.read(body, other, scope.inner(), node.name or node.op_type)

    def _initializer(self, initializer: TensorProto, place: int, scope: _Scope) -> None:
        dims = tuple(initializer.dims)
        scope.values[initializer.name] = _Value(dims, dims, initializer.data_type)
        if place == 0 and initializer.name in self._inputs:
            return  # the default of an input
        external = {entry.key: entry.value for entry in initializer.external_data}
        # Two initializers on the same bytes of a file are one weight, as in an ascent's loop and after it.
        shared = (external["location"], int(external.get("offset", 0)), "") if "location" in external else None
        weight = shared or ("", place, initializer.name)
        self.counts[weight] = math.prod(dims) if initializer.data_type in _FLOATS else 0
        scope.weights[initializer.name] = frozenset([weight])

    def _node(self, node: NodeProto, number: int, place: int, scope: _Scope) -> Node:
        reads, writes = [name for name in node.input if name], [name for name in node.output if name]
        constant = not any(bodies(node)) and all(name in scope.weights for name in reads)
        first_read = self._first_read(reads, writes, constant, scope)
        inputs = [scope.values.get(name, _UNKNOWN) for name in node.input]
        outputs = [scope.values.get(name, _UNKNOWN) for name in writes]
        first = outputs[0] if outputs else _UNKNOWN
        name = node.name or f"{node.op_type}_{number}"
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        role = metadata.get("surgeon.role", UNMARKED)
        return Node(
            name=name,
            operator=node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
            role=role,
            part="" if role == UNMARKED else role,
            module=_module(node.name, metadata),
            source=metadata.get("surgeon.node") or name,
            inputs=tuple(reads),
            outputs=tuple(writes),
            shape=first.shape,
            sizes=first.sizes,
            input_types=tuple(value.type for value in inputs),
            output_types=tuple(value.type for value in outputs),
            multiply_adds=0 if constant else multiply_adds(node, [value.sizes for value in inputs], first.sizes),
            bytes=0 if constant else total(value.bytes for value in outputs),
            parameters=sum(self.counts[weight] for weight in first_read),
            constant=constant,
            graph=place,
        )

    def _first_read(
        self, reads: Sequence[str], writes: Sequence[str], constant: bool, scope: _Scope
    ) -> frozenset[_Weight]:
        """The weights that a node is the first to read; those of a constant count for the node that reads that."""
        weights = _NO_WEIGHTS.union(*(scope.weights.get(name, _NO_WEIGHTS) for name in reads))
        if constant:
            scope.weights.update(dict.fromkeys(writes, weights))
            return _NO_WEIGHTS
        first_read = weights - self._read
        self._read |= first_read
        return first_read


def _value(stated: ValueInfoProto, known: ValueInfoProto) -> _Value:
    return _Value(inference.shape(stated), inference.numbers(known), stated.type.tensor_type.elem_type)


# --- where a node belongs


def _module(name: str, facts: Mapping[str, str]) -> str:
    """The source module from surgeon's metadata, from PyTorch's, or from the node's name."""
    if "surgeon.role" in facts:
        return facts.get("surgeon.module", "")
    try:
        scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        scopes = None
    if isinstance(scopes, list) and len(scopes) > 1 and isinstance(scopes[-2], str):
        return scopes[-2]  # the last is the node itself
    return module_of_path(name)


def module_of_path(name: str) -> str:
    """The dotted module of a node with a name such as /layer1/layer1.0/conv1/Conv: layer1.0.conv1."""
    modules: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if modules and part.startswith(f"{modules[-1]}."):  # PyTorch repeats a container's name in its children's
            modules.pop()
        modules.append(part)
    return ".".join(modules)


def _placed(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """`nodes`, each with its part.

    An unmarked node that is constant, or splits the cotangent, has the part and module of its reader. One that reads a
    backward or step node has that node's. All others are forward.
    """
    producers: dict[tuple[int, str], Node] = {}
    readers: dict[tuple[int, str], Node] = {}
    marked = any(node.part for node in nodes)
    for node in nodes:
        for name in node.inputs:
            readers.setdefault((node.graph, name), node)
    placed: list[Node] = []
    for node in nodes:
        if not node.part:
            if marked:  # its name is no path of modules
                node = dataclasses.replace(node, module="")
            reader = next((readers[node.graph, name] for name in node.outputs if (node.graph, name) in readers), node)
            read = [producers[node.graph, name] for name in node.inputs if (node.graph, name) in producers]
            cuts = marked and "cotangent" in node.inputs  # into those of several layers
            served = reader if (node.constant or cuts) and not node.module else node
            host = next((producer for producer in read if producer.part != "forward"), served)
            part, module, source = host.part or "forward", host.module, host.source
            node = dataclasses.replace(node, part=part, module=module, source=source)
        producers.update({(node.graph, name): node for name in node.outputs})
        placed.append(node)
    return tuple(placed)
