"""ReLU-type functions that a network's author composes of other calls, such as torch.maximum(x, zeros).

These are the larger or smaller of x and a constant, x on one side of a constant, and x times such a mask. The oracle
recognises them by what earlier calls returned: it leaves a note on the result of a comparison, of a multiple of x, and
of a clamp.

`surgeon.conversion.passes.gate_patterns` recognises the same functions in the captured graph, and both recognisers
ship. A pattern that the graph's recogniser misses gets its ordinary derivative without an error, and whether it misses
one depends on how torch.export writes the network, which changes with the network and with PyTorch. Tests hold known
patterns alone; a user's network brings the others, and there verification has to notice. An oracle that read the
captured graph would share the mistake. This module costs 230 lines, which run during verification only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surgeon.verify.oracle.activations import SPACES, Activation, calls, clamp, leaky_relu, threshold


@dataclass(frozen=True)
class Snapshot:
    """A tensor at the time when a call read it; a tensor that the network computes again counts as the same."""

    tensor: Tensor
    version: int

    def shows(self, x: Any) -> bool:
        """Whether `x` is that tensor, unchanged, or holds the same numbers."""
        then = self.tensor
        if not isinstance(x, Tensor) or then._version != self.version or x.shape != then.shape:
            return False
        return (x.data_ptr(), x.stride()) == (then.data_ptr(), then.stride()) or torch.equal(x, then)


def _snapshot(value: Any) -> Any:
    return Snapshot(value, value._version) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Compared:
    """A note on a mask: it is a > b, or a >= b where not `strict`; the opposite where not `holds`."""

    a: Any
    b: Any
    strict: bool
    holds: bool


@dataclass(frozen=True)
class Multiple:
    """A note on a tensor: it is slope * x."""

    x: Snapshot
    slope: Any


@dataclass(frozen=True)
class Clamped:
    """A note on a tensor: it is x, clamped at the edge that is not None."""

    x: Snapshot
    lower: Any
    upper: Any


Gate = tuple[Tensor, Activation]
"""A pre-activation and the function of it."""


def _each(**names: tuple[str, ...]) -> dict[Any, str]:
    return {call: kind for kind, spelt in names.items() for call in calls(SPACES, *spelt)}


_COMPARISONS = _each(
    gt=("gt", "greater", "__gt__"),
    ge=("ge", "greater_equal", "__ge__"),
    lt=("lt", "less", "__lt__"),
    le=("le", "less_equal", "__le__"),
)
_CONVERSIONS = _each(
    copy=("to", "float", "double", "half", "bfloat16", "type", "type_as", "detach", "clone", "_to_copy", "alias"),
    opposite=("logical_not", "bitwise_not", "__invert__"),
)
_PRODUCTS = _each(
    mul=("mul", "multiply", "__mul__", "__rmul__", "mul_", "multiply_", "__imul__"),
    div=("div", "divide", "true_divide", "__truediv__"),
)
_EXTREMA = _each(largest=("maximum", "max", "fmax"), smallest=("minimum", "min", "fmin"))
_WHERE = set(calls(SPACES, "where"))
_FILLS = set(calls(SPACES, "masked_fill", "masked_fill_", "__setitem__"))
OVERWRITING = set(calls(SPACES, "mul_", "multiply_", "__imul__", "masked_fill_", "__setitem__"))
"""Calls that write their result into their first argument."""

_ORDER = ("condition", "input", "mask", "other", "value")


def hidden(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate | None:
    """The activation that is equivalent to `call`, with its pre-activation; None where the call is no gate."""
    if not set(_ORDER).issuperset(kwargs):
        return None
    operands, gate = _positional(args, kwargs), None
    if call in _EXTREMA and len(operands) == 2 and all(isinstance(operand, Tensor) for operand in operands):
        gate = _extremum(*operands, largest=_EXTREMA[call] == "largest")
    elif call in _WHERE and len(operands) == 3:
        gate = _choice(*operands)
    elif call in _FILLS and len(operands) == 3:
        gate = _choice(operands[1], operands[2], operands[0])
    elif call in _PRODUCTS and _PRODUCTS[call] == "mul":
        gate = _choice(operands[1], operands[0], 0.0) or _choice(operands[0], operands[1], 0.0)
    if gate is None:
        return None
    shapes = [operand.shape for operand in operands if isinstance(operand, Tensor)]
    return gate if torch.broadcast_shapes(*shapes) == gate[0].shape else None  # a call that repeats x is no gate


def note_clamp(result: Tensor, x: Tensor, activation: Activation) -> None:
    """Leave a note on `result` if it is x, clamped on one side."""
    if activation.merges and (activation.lower is None) != (activation.upper is None):
        _leave(result, Clamped(_snapshot(x), activation.lower, activation.upper))


def merged(x: Tensor, activation: Activation) -> Gate:
    """activation(x), where x is clamped on one side already: both clamps as one, if together they have both edges."""
    note = _note(x)
    if not activation.merges or not isinstance(note, Clamped) or not note.x.shows(note.x.tensor):
        return x, activation
    if (activation.upper if note.upper is None else activation.lower) is None:
        return x, activation
    edges = [[_number(edge) for edge in pair if edge is not None] for pair in _pairs(note, activation)]
    if any(None in pair for pair in edges):
        return x, activation
    low, high = max(edges[0]), min(edges[1])  # type: ignore[type-var]
    return (note.x.tensor, clamp(x, low, high)) if low <= high else (x, activation)  # type: ignore[operator]


def _pairs(*clamps: Clamped | Activation) -> tuple[list[Any], list[Any]]:
    return [clamp.lower for clamp in clamps], [clamp.upper for clamp in clamps]


def leave_note(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Leave a note on `result` if the call compares, negates or multiplies its argument."""
    if call in _CONVERSIONS and isinstance(note := _note(args[0]), Compared):
        _leave(result, replace(note, holds=note.holds ^ (_CONVERSIONS[call] == "opposite")))
    known = (call in _COMPARISONS or call in _PRODUCTS) and call not in OVERWRITING
    if not known or not set(_ORDER).issuperset(kwargs):
        return
    a, b = operands = _positional(args, kwargs)
    if call in _COMPARISONS:
        kind = _COMPARISONS[call]
        _leave(result, Compared(_snapshot(a), _snapshot(b), strict=kind in ("gt", "le"), holds=kind in ("gt", "ge")))
    elif _PRODUCTS[call] == "mul":
        for x, factor in (operands, operands[::-1]):
            if _flows(x) and not _flows(factor):
                _leave(result, Multiple(_snapshot(x), factor))
    elif _flows(a) and not _flows(b) and (isinstance(b, Tensor) or b):
        _leave(result, Multiple(_snapshot(a), 1 / b))


def _positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return (*args, *(kwargs[name] for name in _ORDER if name in kwargs))


def _leave(result: Tensor, note: Compared | Multiple | Clamped) -> None:
    result.surgeon_note = note, result._version  # type: ignore[attr-defined]


def _note(value: Any) -> Any:
    """The note on `value`; None where an operation in place has changed the value since."""
    note, version = getattr(value, "surgeon_note", (None, None))
    return note if version is not None and version == value._version else None


def _flows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _extremum(a: Tensor, b: Tensor, *, largest: bool) -> Gate | None:
    for x, other in ((a, b), (b, a)):
        if not _flows(x):
            continue
        if not _flows(other):
            return _clamped(x, other, None) if largest else _clamped(x, None, other)
        multiple = _note(other)
        if largest and isinstance(multiple, Multiple) and multiple.x.shows(x):
            slopes = torch.as_tensor(multiple.slope)
            if bool(((slopes >= 0) & (slopes < 1)).all()):
                return _leaky(x, multiple.slope)
    return None


def _clamped(x: Tensor, low: Any, high: Any) -> Gate:
    """x, clamped; min(max(x, low), high) is one clamp."""
    return merged(x, clamp(x, low, high))


def _choice(condition: Any, value: Any, otherwise: Any) -> Gate | None:
    """`value` where the condition holds: x on one side of a constant."""
    note = _note(condition)
    if not isinstance(note, Compared):
        return None
    for x in (value, otherwise):
        for compared, edge, turned in ((note.a, note.b, False), (note.b, note.a, True)):
            edge = edge.tensor if isinstance(edge, Snapshot) else edge
            if _flows(x) and isinstance(compared, Snapshot) and compared.shows(x) and not _flows(edge):
                above, below = (value, otherwise) if note.holds ^ turned else (otherwise, value)
                return _split(x, edge, above, below, strict=note.strict ^ turned)
    return None


def _split(x: Tensor, edge: Any, above: Any, below: Any, *, strict: bool) -> Gate | None:
    """x on one side of the edge, and on the other a constant, or a multiple of x."""
    if above is x and not _flows(below):
        if _equal(below, edge):
            return _clamped(x, edge, None)
        start, value = _number(edge), _number(below)
        if strict and start is not None and value is not None:
            return x, threshold(x, start, value)
    if below is x and not _flows(above) and _equal(above, edge):
        return _clamped(x, None, edge)
    multiple = _note(below)
    if above is x and isinstance(multiple, Multiple) and multiple.x.shows(x) and _equal(edge, 0):
        return _leaky(x, multiple.slope)
    return None


def _leaky(x: Tensor, slope: Any) -> Gate | None:
    """x > 0 ? x : slope * x, for slopes that are the same for every sample."""
    number = _number(slope)
    if number is not None:
        return x, leaky_relu(x, number)
    if x.dim() < 2 or (slope.dim() == x.dim() and len(slope) != 1):
        return None
    return x, Activation(lambda z: torch.where(z > 0, z, slope * z), lower=0.0, slope=slope)


def _equal(a: Any, b: Any) -> bool:
    return bool((torch.as_tensor(a) == torch.as_tensor(b)).all())


def _number(value: Any) -> float | None:
    """The number that `value` is or is filled with; None for tensors that hold several numbers."""
    if not isinstance(value, Tensor):
        return float(value)
    numbers = value.unique().tolist()
    return float(numbers[0]) if len(numbers) == 1 else None
