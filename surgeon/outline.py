"""What `--at` can name: modules of a network that run, entries of what it returns, and gates that are functions."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.capture import GATE_MODULES, evaluating, record, source_module
from surgeon.importer.network import Call
from surgeon.inputs import Example, tensors
from surgeon.layers import cut, entries
from surgeon.published import Pixels
from surgeon.rules import RULES

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Layer:
    """One thing that `--at` can name."""

    name: str
    kind: str  # the module's class, "entry", or the node's operator, also of a node of an ONNX file
    shape: Shape | None  # of its last output, the batch called N; None where that is not one tensor
    calls: int  # in one forward pass
    gates: int  # gates and max pools inside it


def layers(module: nn.Module, example: Example) -> tuple[Layer, ...]:
    """Every module of the network that runs, every entry of what it returns, every gate and max pool that is no module.

    `example` is an input, [N >= 2, …]. Raises ConversionError where torch.export cannot record the network.
    """
    with cut(module, (), everything=True):
        graph = record(module, *tensors(example)).graph
    gates = [node for node in graph.nodes if node.target in RULES and RULES[node.target].kind in ("gate", "pool")]
    within = [(node, source_module(node)) for node in gates]
    wrapped = "network" if isinstance(module, Pixels) else ""
    parts = {name: part for name, part in module.named_modules() if name not in ("", wrapped)}
    found = []
    seen, returned = _calls(module, parts, example)
    for name, (calls, shape) in seen.items():
        inside = sum(owner == name or owner.startswith(f"{name}.") for _, owner in within)
        shown = name.removeprefix(f"{wrapped}.") if wrapped else name
        found.append(Layer(shown, _kind(parts[name]), shape, calls, inside))
    found += [Layer(name, "entry", _shape(tensor), 1, len(gates)) for name, tensor in entries(returned).items()]
    for node, owner in within:
        if not isinstance(parts.get(owner), GATE_MODULES):
            value = node.meta["val"]
            # The value of a max pool is taken from its outputs by the next node.
            reader = next(iter(node.users)) if isinstance(value, (tuple, list)) and node.users else node
            found.append(Layer(reader.name, str(node.target), _shape(reader.meta["val"]), 1, 1))
    return tuple(found)


def _calls(
    module: nn.Module, parts: dict[str, nn.Module], example: Example
) -> tuple[dict[str, tuple[int, Shape | None]], Any]:
    """Of each of `parts` that runs how often, and the shape of its last output; and what `module` returns."""
    seen: dict[str, tuple[int, Shape | None]] = {}
    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for name, part in parts.items():

            def count(_part: nn.Module, _input: Any, output: Any, name: str = name) -> None:
                seen[name] = (seen.get(name, (0, None))[0] + 1, _shape(output))

            hooks.enter_context(part.register_forward_hook(count))
        returned = module(*(x.clone() for x in tensors(example)))
    return {name: seen[name] for name in parts if name in seen}, returned


def _kind(part: nn.Module) -> str:
    return part.kind if isinstance(part, Call) else type(part).__name__


def _shape(value: Any) -> Shape | None:
    inside = entries(value)
    value = next(iter(inside.values())) if len(inside) == 1 else value
    return ("N", *value.shape[1:]) if isinstance(value, Tensor) and value.dim() else None
