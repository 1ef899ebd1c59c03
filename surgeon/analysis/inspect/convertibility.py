"""Whether a network converts, before anything is exported: how each of its operators is treated, and what fails."""

from __future__ import annotations

import collections
import operator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import capture, record
from surgeon.conversion.capture.nodes import source_line, source_module
from surgeon.conversion.passes.optimise import optimise
from surgeon.conversion.plan import Unsupported
from surgeon.conversion.pullback import PullbackModule
from surgeon.errors import ConversionError, UnknownOperators, first_line
from surgeon.network.inputs import Example, tensors
from surgeon.network.modules import evaluating, explaining_inputs
from surgeon.network.wrapping import source_name

TREATMENTS = ("gate", "pool", "rule", "derived", "constant", "unsupported")
"""A soft gate or pool may take its place; a rule of ours; PyTorch's derivative; no way from input to output; none."""


@dataclass(frozen=True)
class Place:
    """One node of the network."""

    node: str
    module: str
    line: str  # of the user's code, such as resnet.py:161; "" where it is not known
    reason: str = ""  # why it is unsupported


@dataclass(frozen=True)
class OperatorSupport:
    """All nodes of one operator that are treated alike."""

    operator: str
    treatment: str  # one of TREATMENTS
    places: tuple[Place, ...]


@dataclass(frozen=True)
class FailingModule:
    """The smallest part of a network that cannot be recorded on its own."""

    module: str  # dotted name; "" for the network itself
    kind: str
    reason: str


@dataclass(frozen=True)
class Convertibility:
    """What `check` found; it converts where `refusal` is None."""

    operators: tuple[OperatorSupport, ...]
    refusal: ConversionError | None = None
    piece: FailingModule | None = None

    @property
    def totals(self) -> dict[str, int]:
        """Number of nodes by treatment."""
        counts = collections.Counter({one: 0 for one in TREATMENTS})
        for found in self.operators:
            counts[found.treatment] += len(found.places)
        return dict(counts)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "convertible": self.refusal is None,
            "operators": [{**asdict(found), "count": len(found.places)} for found in self.operators],
            "totals": self.totals,
            "reason": self.refusal.message if self.refusal else None,
            "piece": asdict(self.piece) if self.piece else None,
        }


def check(module: nn.Module, example: Example, recipe: Recipe | None = None) -> Convertibility:
    """Decide on every operator of `module` as an export would, and run the sweep once on `example`, [N >= 2, …].

    Raises SurgeonError where the network does not take `example`, or `recipe.at` names nothing.
    """
    recipe = recipe or Recipe()
    try:
        with explaining_inputs(module, example):
            captured = capture(module, example, recipe.at)
    except ConversionError as error:
        return Convertibility((), error, _smallest(module, example, error))
    optimise(captured.graph)
    nodes = [node for node in captured.graph.graph.nodes if node.op == "call_function"]
    refused: dict[Node, str] = {}
    refusal: ConversionError | None = None
    treated: dict[Node, str] = {}
    try:
        pullback = PullbackModule(captured, recipe)
        treated = _treatments(pullback.steps)
        _sweep(pullback, example, pullback.output_shape)
    except Unsupported as error:
        refused, refusal = error.refused, error
        treated |= _treatments(error.steps)
    except ConversionError as error:
        refusal = error
    alike: dict[tuple[str, str], list[Place]] = {}
    for node in nodes:
        if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
            continue
        treatment = "unsupported" if node in refused else treated.get(node, "constant")
        place = Place(node.name, source_module(node), source_line(node), refused.get(node, ""))
        alike.setdefault((str(node.target), treatment), []).append(place)
    found = [OperatorSupport(name, treatment, tuple(places)) for (name, treatment), places in alike.items()]
    found.sort(key=lambda one: (TREATMENTS.index(one.treatment), -len(one.places), one.operator))
    return Convertibility(tuple(found), refusal)


def not_imported(error: ConversionError) -> Convertibility:
    """What is known of a file that `error` keeps from becoming a network: of its operators, those at fault."""
    if not isinstance(error, UnknownOperators):
        return Convertibility((), error)
    found = [
        OperatorSupport(
            kind, "unsupported", tuple(Place(name, name, "", f"{name}: {error.reasons[kind]}") for name in names)
        )
        for kind, names in error.nodes.items()
    ]
    return Convertibility(tuple(sorted(found, key=lambda one: (-len(one.places), one.operator))), error)


def _treatments(steps: Any) -> dict[Node, str]:
    return {step.node: "rule" if step.kind == "exact" else step.kind for step in steps}


def _sweep(pullback: PullbackModule, example: Example, output: Any) -> None:
    """Run the sweep: some rules know only when they are called that an argument is beyond them."""
    first, *extra_examples = tensors(example)
    cotangent = torch.ones((first.shape[0], *output), dtype=first.dtype)
    extra_inputs = tuple(extra_examples[place] for place in pullback.used_inputs)
    try:
        with torch.no_grad():
            pullback(first, cotangent, torch.ones((), dtype=first.dtype), extra_inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        line = first_line(error)
        raise ConversionError(
            f"the pullback does not run ({line})", "Please report it, with the network's source"
        ) from error


def _smallest(module: nn.Module, example: Example, error: ConversionError) -> FailingModule | None:
    """The innermost module that cannot be recorded on its own, called as the network calls it; None where all can."""
    calls = _calls(module, example)
    name, reason, failed = "", error.message, False
    while True:
        for inner in _below(name, calls):
            try:
                record(module.get_submodule(inner), *calls[inner])
            except ConversionError as error:
                name, reason, failed = inner, error.message, True
                break
        else:
            kind = type(module.get_submodule(name)).__name__
            return FailingModule(source_name(name), kind, reason) if failed else None


def _below(name: str, calls: dict[str, tuple[Tensor, ...]]) -> list[str]:
    """The modules inside `name` that ran, those inside one of them left out."""
    start = f"{name}." if name else ""
    inside = [other for other in calls if other.startswith(start) and other != name]
    return [one for one in inside if not any(one.startswith(f"{other}.") for other in inside)]


def _calls(module: nn.Module, example: Example) -> dict[str, tuple[Tensor, ...]]:
    """What each inner module was first given, of those that take tensors alone; nothing where `module` does not run."""
    given: dict[str, tuple[Tensor, ...]] = {}
    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for name, part in module.named_modules():

            def note(_part: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], name: str = name) -> None:
                if name and inputs and not keywords and all(isinstance(x, Tensor) and x.dim() for x in inputs):
                    given.setdefault(name, tuple(x.clone() for x in inputs))

            hooks.enter_context(part.register_forward_pre_hook(note, with_kwargs=True))
        try:
            module(*(x.clone() for x in tensors(example)))
        except Exception:  # the error that brought us here says why
            return {}
    return given
