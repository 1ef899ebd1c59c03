"""The reverse sweep: one rule per node, from the output's cotangent back to the input's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from surgeon.conversion.capture.nodes import provenance, provenance_of_port, where
from surgeon.conversion.gates import BoundGate
from surgeon.conversion.plan import Plan, SweepStep, Unsupported
from surgeon.errors import ConversionError, SurgeonError, first_line


class RuleFailure(ConversionError):
    """A rule raised; the message names operator, node, module and line."""


def sweep(plan: Plan, values: Mapping[Node, Any], cotangent: Tensor, inverse_temperature: Tensor) -> dict[Node, Any]:
    """The cotangent at every active node of `plan`, that of a node with several values as a list.

    `values` are those of the forward pass, `cotangent` [N, …output…] is the output's, and `inverse_temperature` is 1/T,
    [] or [gates]. Raises RuleFailure where a rule raises, and ConversionError where it returns what does not fit.
    """
    cotangents = _at_outputs(plan.captured.outputs, values, cotangent)
    for step in plan.steps:
        if step.node in cotangents:
            with provenance(step.node, "backward"):
                policy, edges = step.policy, plan.recipe.edges
                gate = None if policy is None else step.bound(policy, inverse_temperature, edges)
                for argument, piece in _pull_back(step, cotangents[step.node], values, gate, plan.active):
                    cotangents[argument] = _sum(cotangents.get(argument), piece)
    return cotangents


def call_rule(step: SweepStep, g: Any, values: Mapping[Node, Any], gate: BoundGate | None) -> Any:
    """What the rule of `step` returns for the cotangent `g`: an entry for each argument, which may be a callable."""
    arguments = torch.fx.map_arg(step.node.args, values.__getitem__)
    keywords: dict[str, Any] = dict(torch.fx.map_arg(step.node.kwargs, values.__getitem__))
    if gate is not None:
        keywords["gate"] = gate
    return _naming(step.node, step.rule, g, values[step.node], *arguments, **keywords)


def _pull_back(
    step: SweepStep, g: Any, values: Mapping[Node, Any], gate: BoundGate | None, active: Set[Node]
) -> Iterator[tuple[Node, Any]]:
    """(argument, its cotangent) for each active argument of the node; an argument used twice comes twice."""
    node = step.node
    for argument, entry in _pairs(node.args, call_rule(step, g, values, gate)):
        if argument not in active:
            continue
        if entry is None:
            reason = f"depends on the input through {argument.name}, for which its rule has no cotangent"
            raise Unsupported({node: f"{where(node)} {reason}"}, "Complete the rule in surgeon/conversion/rules")
        piece = _naming(node, entry) if callable(entry) else entry
        value = values[argument]
        if isinstance(value, Tensor) and piece.shape != value.shape:
            raise ConversionError(
                f"{where(node)}: its rule gives {list(piece.shape)} for {list(value.shape)}",
                "Mend the rule in surgeon/conversion/rules",
            )
        yield argument, piece


def _naming(node: Node, rule: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call a rule; an exception in it becomes a RuleFailure that names `node`."""
    try:
        return rule(*arguments, **keywords)
    except SurgeonError:
        raise
    except Exception as error:
        raise RuleFailure(
            f"the rule of {where(node)} fails ({first_line(error)})",
            "Mend the rule in surgeon/conversion/rules, or report it with the network's source",
        ) from error


def _pairs(arguments: Any, entries: Any) -> Iterator[tuple[Node, Any]]:
    """(argument node, its entry) in nested arguments; None for later arguments, which have no entry."""
    for argument, entry in itertools.zip_longest(arguments, entries):
        if isinstance(argument, (list, tuple)):
            yield from _pairs(argument, entry or ())
        elif isinstance(argument, Node):
            yield argument, entry


def _sum(total: Any, piece: Any) -> Any:
    """`total` + `piece`, where None is zero; of lists, entry by entry."""
    if total is None or piece is None:
        return piece if total is None else total
    if isinstance(piece, list):
        return [_sum(*pair) for pair in zip(total, piece, strict=True)]
    return total + piece


def _at_outputs(outputs: Sequence[Node], values: Mapping[Node, Any], cotangent: Tensor) -> dict[Node, Any]:
    """The cotangent of each output, of its shape: the inverse of `surgeon.network.layers.joined`."""
    cotangents: dict[Node, Any] = {}
    with provenance_of_port("cotangent", "backward"):
        shapes = [values[node].shape[1:] for node in outputs]
        pieces: Sequence[Tensor] = [cotangent]
        if len(outputs) > 1:
            pieces = cotangent.split([math.prod(shape) for shape in shapes], 1)
            pieces = [piece.reshape(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
        for node, piece in zip(outputs, pieces, strict=True):
            cotangents[node] = _sum(cotangents.get(node), piece)
    return cotangents
