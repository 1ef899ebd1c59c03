"""The layer that takes the cotangent in the place of the network's output: `--at`.

A layer is a module, by its dotted name, or a node of the captured graph, by its own. Of a module that is called several
times, the last call counts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from surgeon.errors import SurgeonError

_AROUND = ("", "network.", "network.network.")
"""What stands before a name of the user's where preprocessing or a change of precision is wrapped around."""


def find(module: nn.Module, name: str) -> nn.Module | None:
    """The module called `name`, seen from `module` or from the network that it is wrapped around."""
    named = dict(module.named_modules(remove_duplicate=False))
    found = (named.get(before + name) for before in _AROUND if name)
    return next((layer for layer in found if layer is not None), None)


@contextmanager
def cut(module: nn.Module, layer: nn.Module, name: str) -> Iterator[None]:
    """For the time being `module` returns the output of `layer`, in the dtype of its own input.

    What comes behind the layer still runs, and is dead code to whoever records the pass.
    """
    kept: list[Any] = []

    def keep(_layer: nn.Module, _input: Any, output: Any) -> None:
        # A copy, since the next layer may overwrite it in place.
        kept[:] = [output.clone() if isinstance(output, Tensor) else output]

    def give(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> Any:
        if not kept:
            raise SurgeonError(f"the layer {name!r} does not run", "Choose one that the forward pass calls")
        value = kept.pop()
        return value.to(inputs[0].dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    with layer.register_forward_hook(keep), module.register_forward_hook(give):
        yield


def end_at(graph: GraphModule, name: str, modules: Iterable[str] = ()) -> GraphModule:
    """`graph`, ended at its node called `name`, which must be one tensor.

    Raises SurgeonError where it is not, or where there is none, with the nearest names among nodes and `modules`.
    """
    nodes = {node.name: node for node in graph.graph.nodes if node.op == "call_function"}
    if name not in nodes:
        known = [*(module.removeprefix("network.") for module in modules), *nodes]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise SurgeonError(
            f"the network has no layer {name!r}", f"{hint}`surgeon inspect MODEL --layers` lists what there is"
        )
    if not isinstance(nodes[name].meta.get("val"), Tensor):
        raise SurgeonError(f"the node {name} is not one tensor", "Name a node that reads a tensor of it")
    graph.graph.output_node().args = (nodes[name],)
    graph.graph.set_codegen(CodeGen())  # the one that was there packs the outputs that were
    return GraphModule(graph, graph.graph)


def drop_inputs(graph: GraphModule, unread: Iterable[Node]) -> GraphModule:
    """`graph` without those of its inputs."""
    for node in unread:
        graph.graph.erase_node(node)
    returned = graph.graph.output_node()
    (returned.args,) = (value if isinstance(value, tuple) else (value,) for value in returned.args)
    graph.graph.set_codegen(CodeGen())  # the one that was there packs and unpacks what was before
    return GraphModule(graph, graph.graph)


def drop_unread(graph: GraphModule) -> None:
    """Forget the nodes behind the output, and the parameters and buffers that none is left to read."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for owner, part in graph.named_modules():
        for values in (part._parameters, part._buffers):
            for name in list(values):
                if (f"{owner}.{name}" if owner else name) not in read:
                    del values[name]
