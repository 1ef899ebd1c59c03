"""The layers that take the cotangent in the place of the network's output: `--at`.

A layer is one of three things, and a name is looked up in this order: a module, by its dotted name, or by an ONNX
file's name for the node or its tensor; an entry of the network's return value, by key, field or index, with dots
between nested ones; a node of the captured graph. If a module is called several times, the last call counts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from surgeon.errors import ConversionError, SurgeonError
from surgeon.network.importer.network import OnnxNetwork
from surgeon.network.wrapping import source_modules

_SHOWN = 6
"""How many entries an error lists."""


def find(module: nn.Module, name: str) -> nn.Module | None:
    """The module called `name` in the network that `module` is or wraps, or in a file; None where there is none."""
    if name in (modules := source_modules(module)):
        return modules[name]
    in_files = [part.called(name) for part in module.modules() if isinstance(part, OnnxNetwork)]
    return next((layer for layer in in_files if layer is not None), None)


def entries(returned: Any, every_name: bool = False) -> dict[str, Tensor]:
    """The tensors in a network's return value by name: `out`, `0`, `flows.3`; none if it is a tensor itself.

    Containers are mappings, tuples and lists, which may be nested. With `every_name` each tensor is listed under all of
    its names: `-1` for the last of a sequence, and a number for a field of a named tuple.
    """
    tensors = {}
    for names, part in _parts(returned):
        for name in names if every_name else names[:1]:
            inner = {f"{name}.{rest}": tensor for rest, tensor in entries(part, every_name).items()}
            tensors.update({name: part} if isinstance(part, Tensor) else inner)
    return tensors


def _parts(value: Any) -> Iterator[tuple[list[str], Any]]:
    """The parts of a container: all names of a part, the usual one first, and the part."""
    if isinstance(value, Mapping):
        yield from (([str(key)], part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        fields = list(getattr(value, "_fields", ()))
        for index, part in enumerate(value):
            yield [*fields[index : index + 1], str(index), str(index - len(value))], part


def kinds(module: nn.Module, names: Sequence[str], returned: Any) -> dict[str, str]:
    """The kind of each layer: "module", "entry" of `returned`, the return value of `module`, or else "node"."""
    known = entries(returned, every_name=True)
    return {name: "module" if find(module, name) else "entry" if name in known else "node" for name in names}


@contextmanager
def cut(module: nn.Module, names: Sequence[str], everything: bool = False) -> Iterator[None]:
    """Inside the context `module` returns the layers called `names`, in the dtype of its input.

    One layer is returned as a tensor, several as a list; without names, the one tensor that the network returns. With
    `everything` the list continues with all tensors that the network returns. Modules after the layers still run, and
    are dead code in a recorded graph. The forward pass raises SurgeonError where no module or entry has the name, or
    where it holds no single tensor.
    """
    modules = {name: part for name in names if (part := find(module, name)) is not None}
    kept: dict[nn.Module, Any] = {}

    def keeper(part: nn.Module) -> Callable[..., None]:
        # Not the module that the hook receives: torch.export replaces a module of several names by copies.
        def keep(_part: nn.Module, _input: Any, output: Any) -> None:
            # A copy, since the next layer may overwrite it in place.
            kept[part] = output.clone() if isinstance(output, Tensor) else output

        return keep

    def give(_module: nn.Module, inputs: tuple[Any, ...], returned: Any) -> Any:
        values = [named(name, returned) for name in names]
        if everything:
            values += [returned] if isinstance(returned, Tensor) else entries(returned).values()
        elif not names:
            values = [only_tensor(returned, type(module).__name__)]
        kept.clear()
        values = [value.to(inputs[0].dtype) if value.is_floating_point() else value for value in values]
        return values[0] if len(values) == 1 else values

    def named(name: str, returned: Any) -> Tensor:
        if name not in modules:
            known = entries(returned, every_name=True)
            if name not in known:
                raise no_layer(name, [*source_modules(module), *entries(returned)])
            return known[name]
        if modules[name] not in kept:
            raise SurgeonError(f"the layer {name!r} does not run", "Choose one that the forward pass calls")
        return only_tensor(kept[modules[name]], f"the layer {name}")

    handles = [part.register_forward_hook(keeper(part)) for part in dict.fromkeys(modules.values())]
    handles.append(module.register_forward_hook(give))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def joined(values: Tensor | Sequence[Tensor]) -> Tensor:
    """Several layers as one output: their outputs [N, …], flattened and concatenated, [N, sum]."""
    if isinstance(values, Tensor):
        return values
    return torch.cat([value.flatten(1) if value.dim() > 1 else value.unsqueeze(1) for value in values], 1)


def only_tensor(value: Any, whose: str) -> Tensor:
    """`value`, or the tensor in it; raises ConversionError, listing its tensors, unless there is exactly one."""
    if isinstance(value, Tensor):
        return value
    tensors = entries(value)
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    shown = ", ".join(f"{name} {_described(part)}" for name, part in list(tensors.items())[:_SHOWN])
    count = f" of {len(tensors)}: {shown}{', …' if len(tensors) > _SHOWN else ''}" if tensors else " without tensors"
    network = not whose.startswith("the layer ")
    raise ConversionError(
        f"{whose} returns a {type(value).__name__}{count}; a pullback starts at one tensor",
        f"Name one with --at {next(iter(tensors))}, or a layer"
        if tensors and network
        else "Wrap it in a module that returns the tensor you mean, or name a layer with --at",
    )


def _described(value: Tensor) -> str:
    return str(["N", *value.shape[1:]]).replace("'", "")


def no_layer(name: str, known: Iterable[str]) -> SurgeonError:
    """The error for a layer that does not exist, with the nearest of the `known` names."""
    listed = dict.fromkeys(known)
    near = difflib.get_close_matches(name, listed, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return SurgeonError(
        f"the network has no layer {name!r}", f"{hint}`surgeon inspect SOURCE --show layers` lists the names"
    )


def end_at(graph: GraphModule, names: Sequence[str], nodes: Sequence[str], known: Iterable[str]) -> GraphModule:
    """`graph`, ended at the layers called `names`: the nodes called `nodes`, and its first outputs for the others.

    Raises SurgeonError where there is no such node, with the nearest names among nodes and `known`, or where the node
    is not one tensor.
    """
    by_name = {node.name: node for node in graph.graph.nodes if node.op == "call_function"}
    output = graph.graph.output_node()
    returned = iter(output.args[0] if isinstance(output.args[0], (tuple, list)) else output.args)
    ends = []
    for name in names:
        if name not in nodes:
            ends.append(next(returned))
            continue
        if name not in by_name:
            raise no_layer(name, [*known, *by_name])
        if not isinstance(by_name[name].meta.get("val"), Tensor):
            raise SurgeonError(f"the node {name} is not one tensor", "Name a node that reads a tensor of it")
        ends.append(by_name[name])
    output.args = (tuple(ends) if len(ends) > 1 else ends[0],)
    graph.graph.set_codegen(CodeGen())  # the old one packs the old outputs
    return GraphModule(graph, graph.graph)


def drop_inputs(graph: GraphModule, unread: Iterable[Node]) -> GraphModule:
    """`graph` without the inputs `unread`."""
    for node in unread:
        graph.graph.erase_node(node)
    returned = graph.graph.output_node()
    (returned.args,) = (value if isinstance(value, tuple) else (value,) for value in returned.args)
    graph.graph.set_codegen(CodeGen())  # the old one packs and unpacks the old inputs and outputs
    return GraphModule(graph, graph.graph)


def drop_unread(graph: GraphModule) -> None:
    """Remove nodes that the output does not depend on, then the parameters and buffers that no node reads."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for owner, part in graph.named_modules():
        for values in (part._parameters, part._buffers):
            for name in list(values):
                if (f"{owner}.{name}" if owner else name) not in read:
                    del values[name]
