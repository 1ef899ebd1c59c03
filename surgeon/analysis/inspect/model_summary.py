"""What a network is made of, and what `--at` can name of it.

That is its modules that run, the entries of what it returns, and its gates that are functions.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode

from surgeon.conversion.capture.capture import GATE_MODULES, record
from surgeon.conversion.capture.nodes import source_module
from surgeon.conversion.rules import RULES
from surgeon.network.importer.network import NodeModule
from surgeon.network.inputs import Example, tensors
from surgeon.network.layers import cut, entries
from surgeon.network.modules import evaluating
from surgeon.network.wrapping import source_name

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class LayerSummary:
    """One thing that `--at` can name. The last three are for one sample, its children included; None for no module."""

    name: str
    kind: str  # the module's class, "entry", or the node's operator, also of a node of an ONNX file
    shape: Shape | None  # of its last output, the batch called N; None where that is not one tensor
    calls: int  # in one forward pass
    gates: int  # gates and max pools inside it
    parameters: int | None = None
    multiply_adds: int | None = None  # half of what PyTorch's counter of floating-point operations says
    bytes: int | None = None  # of its last output


@dataclass(frozen=True)
class RecordedNode:
    """One node of the recorded network."""

    name: str
    operator: str
    module: str  # dotted name; "" for the root
    kind: str  # gate, pool, or "" for everything else
    shape: Shape | None


@dataclass(frozen=True)
class Outline:
    """A network: its layers, the nodes that torch.export records of it, and its counts for one sample."""

    layers: tuple[LayerSummary, ...]
    steps: tuple[RecordedNode, ...]
    outputs: dict[str, Shape | None]  # by entry; "output" where there is one tensor
    parameters: int
    multiply_adds: int


def outline(module: nn.Module, example: Example) -> Outline:
    """Run and record the network on `example`, an input or several, [N >= 2, …].

    Raises ConversionError where torch.export cannot record the network.
    """
    with cut(module, (), everything=True):
        graph = record(module, *tensors(example)).graph
    gates = [node for node in graph.nodes if _role(node)]
    within = [(node, source_module(node)) for node in gates]
    parts = {name: part for name, part in module.named_modules() if source_name(name)}
    owners = {source_name(name): part for name, part in parts.items()}
    found = []
    seen, returned, counted = _calls(module, parts, example)
    for name, (calls, shape, size) in seen.items():
        shown = source_name(name)
        inside = sum(owner == shown or owner.startswith(f"{shown}.") for _, owner in within)
        part, work = parts[name], counted.get(f"{type(module).__name__}.{name}", 0)
        found.append(LayerSummary(shown, _kind(part), shape, calls, inside, _parameters(part), work, size))
    outputs = {name: _shape(tensor) for name, tensor in entries(returned).items()}
    found += [LayerSummary(name, "entry", shape, 1, len(gates)) for name, shape in outputs.items()]
    for node, owner in within:
        if not isinstance(owners.get(owner), GATE_MODULES):
            reader = _reader(node)
            found.append(LayerSummary(reader.name, str(node.target), _shape(reader.meta["val"]), 1, 1))
    steps = tuple(
        RecordedNode(
            node.name, str(node.target), source_module(node), _role(node), _shape(_reader(node).meta.get("val"))
        )
        for node in graph.nodes
        if isinstance(node.target, OpOverload) and isinstance(node.meta.get("val"), (Tensor, tuple, list))
    )
    whole = counted.get(type(module).__name__, 0)
    return Outline(tuple(found), steps, outputs or {"output": _shape(returned)}, _parameters(module), whole)


def layers(module: nn.Module, example: Example) -> tuple[LayerSummary, ...]:
    """Every module of the network that runs, every entry of what it returns, every gate and max pool that is no module.

    As `outline` does.
    """
    return outline(module, example).layers


def _role(node: Node) -> str:
    kind = RULES[node.target].kind if node.target in RULES else ""
    return kind if kind in ("gate", "pool") else ""


def _reader(node: Node) -> Node:
    """Where the value of `node` is: that of a max pool is taken from its outputs by the next node."""
    several = isinstance(node.meta.get("val"), (tuple, list)) and node.users
    return next(iter(node.users)) if several else node


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _calls(
    module: nn.Module, parts: dict[str, nn.Module], example: Example
) -> tuple[dict[str, tuple[int, Shape | None, int | None]], Any, dict[str, int]]:
    """How often each of `parts` that runs does, shape and bytes of its last output; what is returned; multiply-adds."""
    seen: dict[str, tuple[int, Shape | None, int | None]] = {}
    inputs = tensors(example)
    counter = FlopCounterMode(display=False)
    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for name, part in parts.items():

            def count(_part: nn.Module, _input: Any, output: Any, name: str = name) -> None:
                before = seen[name][0] if name in seen else 0
                seen[name] = (before + 1, _shape(output), _bytes(output))

            hooks.enter_context(part.register_forward_hook(count))
        with counter:
            returned = module(*(x.clone() for x in inputs))
    per_sample = 2 * len(inputs[0])
    counted = {name: sum(by_operator.values()) // per_sample for name, by_operator in counter.get_flop_counts().items()}
    return {name: seen[name] for name in parts if name in seen}, returned, counted


def _kind(part: nn.Module) -> str:
    return part.kind if isinstance(part, NodeModule) else type(part).__name__


def _shape(value: Any) -> Shape | None:
    value = _one(value)
    return ("N", *value.shape[1:]) if value is not None else None


def _bytes(value: Any) -> int | None:
    value = _one(value)
    return value[0].numel() * value.element_size() if value is not None else None


def _one(value: Any) -> Tensor | None:
    """The one tensor in `value` that has a batch; None where there is none, or are several."""
    inside = entries(value)
    value = next(iter(inside.values())) if len(inside) == 1 else value
    return value if isinstance(value, Tensor) and value.dim() else None
