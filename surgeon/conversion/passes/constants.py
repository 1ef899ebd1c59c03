"""Constant folding: masks and positions of windows, standardised weights, gathered biases are computed once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

LARGEST = 2**20
"""Largest number of elements of a folded value that is larger than its inputs, since files store it."""


def fold_constants(graph: GraphModule) -> int:
    """f(w) = c for parameters and buffers w: the value replaces the operators that compute it."""
    fixed: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            fixed[node] = operator.attrgetter(str(node.target))(graph)
        elif _is_fixed(node, fixed):
            arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), fixed.__getitem__)
            with torch.no_grad():
                fixed[node] = node.target(*arguments, **keywords)
    count = 0
    for node, value in fixed.items():
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(user in fixed for user in node.users):
            continue
        name = f"constant_{node.name}"
        # A clone: a view would store its whole base, and a parameter must never be overwritten.
        graph.register_buffer(name, value.detach().clone())
        with graph.graph.inserting_before(node):
            read = graph.graph.get_attr(name)
        read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
        count += 1
    graph.graph.eliminate_dead_code()
    return count


def _is_fixed(node: Node, fixed: dict[Node, Any]) -> bool:
    """Whether `node` depends only on `fixed` values, is the same at every run, and is small enough to store."""
    if node.op != "call_function" or not all(argument in fixed for argument in node.all_input_nodes):
        return False
    if node.target is operator.getitem:
        return True
    value = node.meta.get("val")
    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    values = value if isinstance(value, (tuple, list)) else [value]
    sizes = [item.numel() for item in values if isinstance(item, Tensor) and _is_known(item.shape)]
    inputs = [fixed[argument] for argument in node.all_input_nodes]
    largest = max([LARGEST, *(item.numel() for item in inputs if isinstance(item, Tensor))])
    return bool(sizes) and max(sizes) <= largest


def _is_known(shape: torch.Size) -> bool:
    return all(isinstance(size, int) for size in shape)
