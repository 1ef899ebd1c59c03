"""Passes over graphs: `optimise` on the captured forward pass, `optimise_pullback` on the recorded pullback.

Each is an ordered list. Every pass preserves all values, up to rounding, and returns how often it applied.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from surgeon.conversion.passes.constants import fold_constants
from surgeon.conversion.passes.gate_patterns import canonicalize_gates
from surgeon.conversion.rules.registry import aten

Pass = Callable[[GraphModule], int]

LOWEST, LOWEST_HALF = -1e30, -3e4
"""Below every value of a network in float32 and in float16, and still finite when divided by T."""


def optimise(graph: GraphModule) -> dict[str, int]:
    """Apply all passes to `graph` in place; return how often each applied, by name."""
    applied = {step.__name__: step(graph) for step in PASSES}
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return applied


def optimise_pullback(program: ExportedProgram) -> dict[str, int]:
    """Apply PULLBACK_PASSES to the recorded pullback in place; return how often each applied, by name."""
    applied = {step.__name__: step(program) for step in PULLBACK_PASSES}
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()
    return applied


def drop_identities(graph: GraphModule) -> int:
    """clone(x) = x; dropout in evaluation mode = x; an adaptive pool to the size of x = x.

    A view may have relied on a clone that made a permuted tensor contiguous; reshape copies where it has to.
    """
    count = 0
    for node in list(graph.graph.nodes):
        copies = node.target in (aten.clone.default, aten.alias.default, aten.dropout.default)
        adaptive = node.target in (aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
        if copies or (adaptive and str(node.meta["val"].shape) == str(node.args[0].meta["val"].shape)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            count += 1
    if count:
        for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
            node.target = aten.reshape.default
    return count


def fold_batch_norm(graph: GraphModule) -> int:
    """BN(conv(x, w, b)) = conv(x, s w, s (b - mean) + beta) with s = gamma / sqrt(var + eps), if only BN reads conv.

    Folded in float64 and rounded once. A batch norm after any other operator stays.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        convolution = node.args[0]
        if convolution.target is not aten.convolution.default or len(convolution.users) != 1:
            continue
        x, weight, bias, *geometry = convolution.args
        parameters = [_value(graph, argument) for argument in (weight, bias, *node.args[1:5])]
        if any(
            value is None
            for value, argument in zip(parameters, (weight, bias, *node.args[1:5]), strict=True)
            if argument is not None
        ):
            continue
        w, b, gamma, beta, mean, variance = parameters
        assert w is not None and mean is not None and variance is not None
        scale = torch.rsqrt(variance.double() + node.args[6])
        scale = scale if gamma is None else scale * gamma.double()
        shift = (torch.zeros_like(scale) if b is None else b.double()) - mean.double()
        shift = scale * shift if beta is None else scale * shift + beta.double()
        # The weight of a transposed convolution has its output channels, group by group, in dimension 1.
        transposed, groups = geometry[3], geometry[5]
        if transposed:
            per_input = scale.reshape(groups, 1, -1).expand(groups, w.shape[0] // groups, -1)
            factor = per_input.reshape(w.shape[0], -1, *[1] * (w.dim() - 2))
        else:
            factor = scale.reshape(-1, *[1] * (w.dim() - 1))
        with graph.graph.inserting_before(convolution):
            new_weight = _constant(graph, convolution.name + "_weight", (w.double() * factor).to(w.dtype))
            new_bias = _constant(graph, convolution.name + "_bias", shift.to(w.dtype))
        convolution.args = (x, new_weight, new_bias, *geometry)
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(convolution)
                graph.graph.erase_node(user)
        count += 1
    graph.graph.eliminate_dead_code()
    return count


def fold_padding(graph: GraphModule) -> int:
    """conv(pad(x, p), padding q) = conv(x, padding p + q) for zeros, equally many on both sides of each axis."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.convolution.default or node.args[6]:  # transposed
            continue
        pad = node.args[0]
        if pad.target is not aten.constant_pad_nd.default or (len(pad.args) > 2 and pad.args[2] != 0):
            continue
        widths, axes = list(pad.args[1]), len(node.args[4])
        before, after = widths[0::2], widths[1::2]
        if before != after or min(widths) < 0 or any(before[axes:]):
            continue
        around = [*before, *[0] * axes][:axes][::-1]  # pad counts axes from the last one
        padding = [around[a] + node.args[4][a] for a in range(axes)]
        node.args = (pad.args[0], *node.args[1:4], padding, *node.args[5:])
        count += 1
    return count


def bound_padding(graph: GraphModule) -> int:
    """max_pool(pad(x, -inf)) = max_pool(pad(x, c)) for a c below every x: a soft pool would compute 0 × infinity."""
    count = 0
    for node in graph.graph.find_nodes(op="call_function", target=aten.constant_pad_nd.default):
        if node.args[2:] == (float("-inf"),) and all(_is_max_pool(user) for user in node.users):
            node.args = (*node.args[:2], LOWEST if node.meta["val"].dtype != torch.float16 else LOWEST_HALF)
            count += 1
    return count


def _is_max_pool(node: Node) -> bool:
    if node.target in (
        aten.unsqueeze.default,
        aten.view.default,
        aten.reshape.default,
    ):  # around a one-dimensional pool
        return all(_is_max_pool(user) for user in node.users)
    return node.target in (aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)


def share_concatenations(graph: GraphModule) -> int:
    """cat(a, b, c) = cat(cat(a, b), c) if cat(a, b) exists already, as in a DenseNet's blocks.

    The pullback then adds the cotangents of all later concatenations and splits the sum once. Otherwise it would split
    each of them into all its pieces.
    """
    count = 0
    seen: dict[tuple[tuple[Node, ...], int], Node] = {}
    for node in list(graph.graph.nodes):
        if node.target is not aten.cat.default:
            continue
        pieces, dim = tuple(node.args[0]), (node.args[1] if len(node.args) > 1 else 0) % node.meta["val"].dim()
        for length in range(len(pieces) - 1, 1, -1):
            prefix = seen.get((pieces[:length], dim))
            if prefix is not None:
                node.args = ([prefix, *pieces[length:]], dim)
                count += 1
                break
        seen[pieces, dim] = node
    return count


def fold_scales(program: ExportedProgram) -> int:
    """s * (a * conv(g, w)) = a * conv(g, s w) for a constant s per channel: a batch norm's scale after a gate.

    The product s w is constant too, and a runtime computes it when it loads the file.
    """
    graph, count = program.graph, 0
    varying = _varying(program)
    for node in list(graph.nodes):
        if node.target is not aten.mul.Tensor or not all(isinstance(factor, Node) for factor in node.args):
            continue
        for gated, scale in (node.args, node.args[::-1]):
            if scale in varying or gated.target is not aten.mul.Tensor or len(gated.users) != 1:
                continue
            conv = next((f for f in gated.args if isinstance(f, Node) and f.target is aten.convolution.default), None)
            if conv is None or len(conv.users) != 1 or conv.args[2] is not None or conv.args[6]:  # bias, transposed
                continue
            shape = conv.meta["val"].shape
            if tuple(scale.meta["val"].shape) != (shape[1], *[1] * (len(shape) - 2)):
                continue
            with graph.inserting_before(conv):
                column = _recorded(graph, aten.unsqueeze.default, (scale, 1), conv)
                weight = _recorded(graph, aten.mul.Tensor, (conv.args[1], column), conv)
            _move_before(scale, column)
            conv.args = (conv.args[0], weight, *conv.args[2:])
            node.replace_all_uses_with(gated)
            graph.erase_node(node)
            count += 1
            break
    return count


PULLBACK_PASSES: tuple[Callable[[ExportedProgram], int], ...] = (fold_scales,)

PASSES: tuple[Pass, ...] = (
    *(fold_constants, drop_identities, canonicalize_gates),
    *(fold_batch_norm, fold_padding, bound_padding, share_concatenations),
)


def _varying(program: ExportedProgram) -> set[Node]:
    """The nodes that depend on the program's inputs."""
    inputs = set(program.graph_signature.user_inputs)
    varying: set[Node] = set()
    for node in program.graph.nodes:
        if node.name in inputs or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return varying


def _recorded(graph: Graph, target: OpOverload, arguments: tuple[Any, ...], like: Node) -> Node:
    """A new node with a fake value of its own, and with the provenance of `like`."""
    node = graph.call_function(target, arguments)
    node.meta = dict(like.meta)
    node.meta["val"] = target(*torch.fx.map_arg(arguments, lambda argument: argument.meta["val"]))
    return node


def _move_before(node: Node, place: Node) -> None:
    """Move `node`, a constant, and the nodes it depends on before `place`, unless they stand there already.

    Nodes further ahead stay: other nodes may read them there, as a scale that the forward pass multiplies by.
    """
    if place < node:
        place.prepend(node)
        for argument in node.all_input_nodes:
            _move_before(argument, node)


def _value(graph: GraphModule, argument: object) -> Tensor | None:
    """The parameter or buffer that `argument` reads, or None where it is computed or missing."""
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return None
    value: object = graph
    for part in str(argument.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else None


def _constant(graph: GraphModule, name: str, value: Tensor) -> Node:
    """A new buffer of `graph` and the node that reads it."""
    unused = name
    while hasattr(graph, unused):
        unused += "_"
    graph.register_buffer(unused, value)
    return graph.graph.get_attr(unused)
