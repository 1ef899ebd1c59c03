"""Whether a network converts, before anything is exported: how each of its operators is treated, and what fails."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import Captured, capture, record
from surgeon.conversion.capture.nodes import source_line, source_module
from surgeon.conversion.passes.optimise import optimise
from surgeon.conversion.plan import SweepStep, Unsupported
from surgeon.conversion.pullback import PullbackModule
from surgeon.errors import ConversionError, UnknownOperators, first_line
from surgeon.network.inputs import Example, tensors
from surgeon.network.modules import evaluating, explaining_inputs
from surgeon.network.wrapping import source_name

TREATMENTS = ("gate", "pool", "rule", "derived", "constant", "unsupported")
"""How an export treats an operator: a gate or pool, which a soft one may replace; a rule of surgeon's; PyTorch's
derivative; no gradient flows through it; it has no pullback."""


@dataclass(frozen=True)
class Place:
    """One node of the network."""

    node: str
    module: str
    line: str  # of the user's code, such as resnet.py:161; "" where it is not known
    reason: str = ""  # why it is unsupported


@dataclass(frozen=True)
class TreatedOperator:
    """All nodes of one operator that are treated alike."""

    operator: str
    treatment: str  # one of TREATMENTS
    places: tuple[Place, ...]


@dataclass(frozen=True)
class FailingModule:
    """The innermost module of a network that cannot be recorded on its own."""

    module: str  # dotted name; "" for the network itself
    kind: str
    reason: str


@dataclass(frozen=True)
class ConvertibilityReport:
    """Whether a network converts, and how its operators are treated; it converts where `refusal` is None."""

    operators: tuple[TreatedOperator, ...]
    refusal: ConversionError | None = None
    failing_module: FailingModule | None = None

    @property
    def totals(self) -> dict[str, int]:
        """Number of nodes by treatment."""
        counts = dict.fromkeys(TREATMENTS, 0)
        for treated in self.operators:
            counts[treated.treatment] += len(treated.places)
        return counts

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "convertible": self.refusal is None,
            "operators": [{**asdict(treated), "count": len(treated.places)} for treated in self.operators],
            "totals": self.totals,
            "reason": self.refusal.message if self.refusal else None,
            "failing_module": asdict(self.failing_module) if self.failing_module else None,
        }


def check(
    module: nn.Module, example: Example, recipe: Recipe | None = None, captured: Captured | None = None
) -> ConvertibilityReport:
    """Decide on every operator of `module` as an export would, and run the rules once on the shapes of `example`.

    `example` is an input or several, [N >= 2, …]. `captured` is the network captured already for this recipe; it is
    changed. Raises SurgeonError where the network does not take `example`, or `recipe.at` names nothing.
    """
    recipe = recipe or Recipe()
    try:
        if captured is None:
            with explaining_inputs(module, example):
                captured = capture(module, example, recipe.at)
    except ConversionError as error:
        return ConvertibilityReport((), error, _innermost_failure(module, example, error))
    optimise(captured.graph)
    nodes = [node for node in captured.graph.graph.nodes if node.op == "call_function"]
    refused: dict[Node, str] = {}
    refusal: ConversionError | None = None
    treatments: dict[Node, str] = {}
    try:
        pullback = PullbackModule(captured, recipe)
        treatments = _treatments(pullback.steps)
        _run_rules(pullback, example)
    except Unsupported as error:
        refused, refusal = error.refused, error
        treatments |= _treatments(error.steps)
    except ConversionError as error:
        refusal = error
    alike: dict[tuple[str, str], list[Place]] = {}
    for node in nodes:
        if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
            continue
        treatment = "unsupported" if node in refused else treatments.get(node, "constant")
        place = Place(node.name, source_module(node), source_line(node), refused.get(node, ""))
        alike.setdefault((str(node.target), treatment), []).append(place)
    treated = [TreatedOperator(name, treatment, tuple(places)) for (name, treatment), places in alike.items()]
    return ConvertibilityReport(tuple(sorted(treated, key=_rank)), refusal)


def not_imported(error: ConversionError) -> ConvertibilityReport:
    """The report on a file that could not be imported because of `error`: only the operators at fault are known."""
    if not isinstance(error, UnknownOperators):
        return ConvertibilityReport((), error)
    refused = []
    for kind, names in error.nodes.items():
        places = tuple(Place(name, name, "", f"{name}: {error.reasons[kind]}") for name in names)
        refused.append(TreatedOperator(kind, "unsupported", places))
    return ConvertibilityReport(tuple(sorted(refused, key=_rank)), error)


def _rank(treated: TreatedOperator) -> tuple[int, int, str]:
    return TREATMENTS.index(treated.treatment), -len(treated.places), treated.operator


def _treatments(steps: Iterable[SweepStep]) -> dict[Node, str]:
    return {step.node: "rule" if step.kind == "exact" else step.kind for step in steps}


def _run_rules(pullback: PullbackModule, example: Example) -> None:
    """Run forward pass and sweep on tensors without values: a rule may refuse its arguments only when it is called."""
    shapes_alone = FakeTensorMode(allow_non_fake_inputs=True)  # of the network's parameters
    first, *extra_examples = (shapes_alone.from_tensor(x) for x in tensors(example))
    extra_inputs = tuple(extra_examples[place] for place in pullback.used_inputs)
    try:
        with shapes_alone, torch.no_grad():
            shape: Any = (first.shape[0], *pullback.output_shape)
            cotangent = torch.ones(shape, dtype=first.dtype)
            pullback(first, cotangent, torch.ones((), dtype=first.dtype), extra_inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(
            f"the pullback does not run ({first_line(error)})", "Please report it, with the network's source"
        ) from error


def _innermost_failure(module: nn.Module, example: Example, error: ConversionError) -> FailingModule | None:
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
    """The outermost modules inside `name` that ran."""
    start = f"{name}." if name else ""
    inside = [other for other in calls if other.startswith(start) and other != name]
    return [inner for inner in inside if not any(inner.startswith(f"{other}.") for other in inside)]


def _calls(module: nn.Module, example: Example) -> dict[str, tuple[Tensor, ...]]:
    """The inputs of the first call of each inner module that takes tensors alone; empty where `module` does not run."""
    calls: dict[str, tuple[Tensor, ...]] = {}
    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for name, part in module.named_modules():

            def note(_part: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], name: str = name) -> None:
                if name and inputs and not keywords and all(isinstance(x, Tensor) and x.dim() for x in inputs):
                    calls.setdefault(name, tuple(x.clone() for x in inputs))

            hooks.enter_context(part.register_forward_pre_hook(note, with_kwargs=True))
        try:
            module(*(x.clone() for x in tensors(example)))
        except Exception:  # the error that is being explained says why
            return {}
    return calls
