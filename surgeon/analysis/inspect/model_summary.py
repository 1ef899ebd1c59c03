"""Structure of a network before it is exported: its modules that run, its outputs, and its gates that are functions.

These are also the names that `--at` takes.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from surgeon.conversion.capture.capture import GATE_MODULES, Captured, capture, record, returned_by
from surgeon.conversion.capture.decompositions import DECOMPOSITIONS
from surgeon.conversion.capture.nodes import source_module
from surgeon.conversion.rules import CONSTANT, DERIVED, RULES
from surgeon.errors import ConversionError
from surgeon.network.importer.network import NodeModule
from surgeon.network.inputs import Example, tensors
from surgeon.network.layers import cut, entries
from surgeon.network.wrapping import source_name

Shape = tuple[int | str, ...]

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerSummary:
    """A layer that `--at` can name. The last three are for one sample, its children included; None for no module."""

    name: str
    kind: str  # the module's class, "entry", or the node's operator, also of a node of an ONNX file
    shape: Shape | None  # of its last output, the batch called N; None where that is not one tensor
    calls: int  # in one forward pass
    gates: int  # gates and max pools inside it
    parameters: int | None = None
    multiply_adds: int | None = None  # half of what PyTorch's counter of floating-point operations reports
    bytes: int | None = None  # of its last output


@dataclass(frozen=True)
class RecordedNode:
    """One node of the recorded network."""

    name: str
    operator: str
    module: str  # dotted name; "" for the root
    kind: str  # gate, pool, or "" for everything else
    shape: Shape | None


class ModelSummary:
    """The facts about a network on `example`, an input or several, [N >= 2, …]; each is computed when it is read.

    `layers`, `gate_kinds`, `outputs` and the counts need one forward pass; the first two also a recording where gates
    are functions, whose names torch.export alone knows. `nodes` need a recording, `captured` is the same one. Where
    torch.export cannot record the network, what needs that raises ConversionError.
    """

    def __init__(self, module: nn.Module, example: Example) -> None:
        self.module, self.example = module, tensors(example)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return _parameters(self.module)

    @property
    def multiply_adds(self) -> int:
        """Of the whole network, for one sample."""
        return self._run.multiply_adds.get(type(self.module).__name__, 0)

    @property
    def outputs(self) -> dict[str, Shape | None]:
        """Shape of each entry of what the network returns; called "output" where that is one tensor."""
        returned = self._run.returned
        return {name: _shape(tensor) for name, tensor in entries(returned).items()} or {"output": _shape(returned)}

    @property
    def gate_kinds(self) -> tuple[str, ...]:
        """`gate` or `pool` for each gate and max pool of the network."""
        return tuple(kind for _, kind in self._gates)

    @functools.cached_property
    def layers(self) -> tuple[LayerSummary, ...]:
        """Every module that runs, every entry of what is returned, every gate and max pool that is no module."""
        layers = []
        for name, calls in self._run.calls.items():
            shown, part = source_name(name), calls.module
            inside = sum(owner == shown or owner.startswith(f"{shown}.") for owner, _ in self._gates)
            work = self._run.multiply_adds.get(f"{type(self.module).__name__}.{name}", 0)
            summary = LayerSummary(
                shown, _kind(part), calls.shape, calls.count, inside, _parameters(part), work, calls.bytes
            )
            layers.append(summary)
        for name, tensor in entries(self._run.returned).items():
            layers.append(LayerSummary(name, "entry", _shape(tensor), 1, len(self._gates)))
        if self._run.gates is None:
            owners = {source_name(name): calls.module for name, calls in self._run.calls.items()}
            gates = self._recording.gates
            layers += [gate for owner, gate in gates if not isinstance(owners.get(owner), GATE_MODULES)]
        return tuple(layers)

    @property
    def nodes(self) -> tuple[RecordedNode, ...]:
        """The operators that torch.export records of the network, in order."""
        return self._recording.nodes

    @property
    def captured(self) -> Captured | None:
        """The network as `capture` returns it; None where that refuses it."""
        return self._recording.captured

    @functools.cached_property
    def _recording(self) -> _Recording:
        if isinstance(self._run.returned, Tensor):
            with contextlib.suppress(ConversionError):
                captured = capture(self.module, self.example)
                return _described(captured.graph, captured)
        # No pullback starts at several tensors, but the nodes that compute them can be listed all the same.
        with cut(self.module, (), everything=True):
            return _described(record(self.module, *self.example), None)

    @functools.cached_property
    def _gates(self) -> list[tuple[str, str]]:
        """(module, kind) of each gate and max pool."""
        if self._run.gates is not None:
            return [(source_name(name), kind) for name, kind in self._run.gates]
        return [(node.module, node.kind) for node in self.nodes if node.kind]

    @functools.cached_property
    def _run(self) -> _ForwardPass:
        return _run_once(self.module, self.example)


def layers(module: nn.Module, example: Example) -> tuple[LayerSummary, ...]:
    """The layers of a network, as `ModelSummary.layers`."""
    return ModelSummary(module, example).layers


# --- one forward pass


_GATE_OF_MODULE: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.Threshold), "gate"),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), "pool"),
}
"""Modules, no subclasses, whose every call is recorded as exactly one gate or max pool."""

_PLAIN = {
    *(
        aten.native_batch_norm.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.native_group_norm.default,
    ),
    *(aten.native_layer_norm.default, aten.convolution.default, aten.addmm.default, aten.t.default),
    *(aten._adaptive_avg_pool2d.default, aten.empty.memory_format),
}
"""Operators besides those of the lists of rules that no decomposition turns into gates."""


@dataclass
class _ModuleCalls:
    """The calls of one module, and its last output."""

    module: nn.Module
    count: int
    shape: Shape | None
    bytes: int | None


@dataclass
class _ForwardPass:
    """What one forward pass shows; modules go by their names in the network that was run, wrappers included."""

    returned: Any
    calls: dict[str, _ModuleCalls]
    multiply_adds: dict[str, int]  # by PyTorch's name of the module: its root's class in front; for one sample
    gates: (
        list[tuple[str, str]] | None
    )  # (module, kind); None where functions may be gates, which only a recording tells


@dataclass
class _GateWatch(TorchDispatchMode):
    """Lists calls of modules that are one gate each, and watches whether every operator outside them is surely none."""

    gates: list[tuple[str, str]] = field(default_factory=list)
    inside: int = 0  # modules of _GATE_OF_MODULE that are running
    complete: bool = True  # whether `gates` are all of them

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.complete = self.complete and (self.inside > 0 or _is_no_gate(func))
        return func(*args, **kwargs or {})


@functools.cache
def _is_no_gate(operator: OpOverload) -> bool:
    """Whether the recording of `operator` holds no gate or max pool; False where that is not certain."""
    name = operator.overloadpacket.__name__
    packet = getattr(aten, name.rstrip("_") if not name.endswith("__") else name, None)  # add_ is recorded as add
    written = getattr(packet, operator._overloadname, operator)
    if operator in _PLAIN:
        return True
    exact = written in RULES and RULES[written].kind == "exact"
    return (exact or written in DERIVED or written in CONSTANT) and written not in DECOMPOSITIONS


def _run_once(module: nn.Module, inputs: tuple[Tensor, ...]) -> _ForwardPass:
    """Run `module`, in evaluation mode, on copies of `inputs`; raises SurgeonError where it does not take them."""
    parts = {name: part for name, part in module.named_modules() if source_name(name)}
    calls: dict[str, _ModuleCalls] = {}
    counter, watch = FlopCounterMode(display=False), _GateWatch()
    with ExitStack() as hooks:
        for name, part in parts.items():
            kind = _GATE_OF_MODULE.get(type(part))

            def enter(_part: nn.Module, _input: Any) -> None:
                watch.inside += 1

            def note(part: nn.Module, _input: Any, output: Any, name: str = name, kind: str | None = kind) -> None:
                count = calls[name].count + 1 if name in calls else 1
                calls[name] = _ModuleCalls(part, count, _shape(output), _bytes(output))
                if kind is not None:
                    watch.inside -= 1
                    watch.gates.append((name, kind))

            if kind is not None:
                hooks.enter_context(part.register_forward_pre_hook(enter))
            hooks.enter_context(part.register_forward_hook(note))
        with counter, watch:
            returned = returned_by(module, inputs)
    flops_per_multiply_add = 2 * len(inputs[0])
    counts = {name: sum(flops.values()) // flops_per_multiply_add for name, flops in counter.get_flop_counts().items()}
    ordered = {name: calls[name] for name in parts if name in calls}
    return _ForwardPass(returned, ordered, counts, watch.gates if watch.complete else None)


# --- the recorded graph


@dataclass(frozen=True)
class _Recording:
    """The network's graph as plain facts, and as it was captured, which passes may change afterwards."""

    captured: Captured | None
    nodes: tuple[RecordedNode, ...]
    gates: tuple[tuple[str, LayerSummary], ...]  # (module, the gate as a layer by its node's name)


def _described(graph: GraphModule, captured: Captured | None) -> _Recording:
    nodes, gates = [], []
    for node in graph.graph.nodes:
        if not isinstance(node.target, OpOverload) or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            continue
        module, operator, kind, value = source_module(node), str(node.target), _gate_kind(node), _value_node(node)
        shape = _shape(value.meta.get("val"))
        nodes.append(RecordedNode(node.name, operator, module, kind, shape))
        if kind:
            gates.append((module, LayerSummary(value.name, operator, shape, 1, 1)))
    return _Recording(captured, tuple(nodes), tuple(gates))


def _gate_kind(node: Node) -> str:
    kind = RULES[node.target].kind if node.target in RULES else ""
    return kind if kind in ("gate", "pool") else ""


def _value_node(node: Node) -> Node:
    """The node that holds the value of `node`; a max pool returns two, and the next node takes the value out."""
    several = isinstance(node.meta.get("val"), (tuple, list)) and node.users
    return next(iter(node.users)) if several else node


# --- values


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _kind(part: nn.Module) -> str:
    return part.kind if isinstance(part, NodeModule) else type(part).__name__


def _shape(value: Any) -> Shape | None:
    tensor = _single_tensor(value)
    return ("N", *tensor.shape[1:]) if tensor is not None else None


def _bytes(value: Any) -> int | None:
    tensor = _single_tensor(value)
    return tensor[0].numel() * tensor.element_size() if tensor is not None else None


def _single_tensor(value: Any) -> Tensor | None:
    """The only tensor in `value` that has a batch; None where there is none, or several."""
    inside = entries(value)
    value = next(iter(inside.values())) if len(inside) == 1 else value
    return value if isinstance(value, Tensor) and value.dim() else None
