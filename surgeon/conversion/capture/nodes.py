"""What a node of a captured graph is called and where it comes from, for errors, manifests and provenance."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx import traceback as fx_traceback

from surgeon.network.sizes import is_symbolic
from surgeon.network.wrapping import source_name

_BETWEEN = ("/torch/nn/", "/surgeon/conversion/capture/decompositions.py")
"""Files between the user's line and the operator in a stack trace; the second only as torch 2.11 reads bytecode."""


def source_module(node: Node) -> str:
    """Dotted name of the innermost module that `node` comes from, inside wrappers; "" for the root."""
    stack = node.meta.get("nn_module_stack")
    name = list(stack.values())[-1][0] if stack else ""
    return source_name(str(name).partition("@")[0])  # a second call of a module is named NAME@1


def source_classes(node: Node) -> list[str]:
    """Class names of the modules that `node` comes from, innermost last, such as torch.nn.modules.activation.ReLU."""
    stack = node.meta.get("nn_module_stack") or {}
    return [kind if isinstance(kind, str) else qualified(kind) for _, kind in stack.values()]


def source_line(node: Node) -> str:
    """The line of the user's code that `node` comes from, such as "resnet.py:161"; "" where it is not known."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    users = [line for line in lines if not any(between in line for between in _BETWEEN)] or lines
    if not users:
        return ""
    path, _, rest = users[-1].removeprefix('File "').partition('", line ')
    return f"{path.replace(chr(92), '/').rpartition('/')[2]}:{rest.partition(',')[0]}"


def qualified(kind: type) -> str:
    """A class by its module and name, as `source_classes` names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def where(node: Node) -> str:
    """Operator, node, source module and line, for errors."""
    module, line = source_module(node), source_line(node)
    place = f" in {module}" if module else ""
    return f"{node.target} ({node.name}{place}{', ' + line if line else ''})"


def shape_of(argument: Any, input: Node) -> tuple[int | str, ...]:
    """A node's shape (that of its first value), in which the input's free sizes are called N, H and W."""
    sizes = zip(input.meta["val"].shape, ("N", "C", "H", "W"), strict=False)
    free = {str(size): name for size, name in sizes if is_symbolic(size)}

    def named(size: Any) -> int | str:
        return size if isinstance(size, int) else re.sub(r"\w+", lambda word: free.get(word[0], word[0]), str(size))

    value = argument.meta["val"]
    return tuple(named(size) for size in (value if isinstance(value, Tensor) else value[0]).shape)


def value_tensors(node: Node) -> list[Tensor]:
    """The tensors among the node's fake value or values."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in values if isinstance(item, Tensor)]


def provenance(node: Node, role: str) -> AbstractContextManager[None]:
    """Name `node` and its source module in the meta of all nodes that are recorded inside this context.

    `role` is forward or backward.
    """
    return _annotated(node.name, source_module(node), role)


def provenance_of_port(name: str, role: str) -> AbstractContextManager[None]:
    """As `provenance`, for nodes that prepare the input or output `name` and belong to no node of the network."""
    return _annotated(name, "", role)


def _annotated(name: str, module: str, role: str) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = fx_traceback.annotate(
        {"surgeon": {"node": name, "module": module, "role": role}}
    )
    return context
