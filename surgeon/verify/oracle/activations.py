"""ReLU-type functions as a network's author may call them: by their names, or in other words.

Other words are the larger of x and a constant, x where it is above a constant, x times such a mask. They are known by
what earlier calls returned: a comparison leaves a note on its result, and so do a multiple of x and a clamp. Nothing
here looks at the captured graph, where `surgeon.conversion.passes.gate_patterns` finds the same functions in its own
way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverloadPacket

from surgeon.errors import SurgeonError


@dataclass(frozen=True)
class Activation:
    """One ReLU-type function: plain(z), open between the edges, with a slope where it is shut."""

    plain: Callable[[Tensor], Tensor]
    lower: Any = None  # number or tensor
    upper: Any = None
    slope: Any = 0.0  # likewise, broadcast against z
    clamps: bool = False
    merges: bool = False  # with another such, into a clamp that has both edges


def _relu(z: Tensor) -> Activation:
    return Activation(torch.relu, lower=0.0, merges=True)


def _relu6(z: Tensor) -> Activation:
    return Activation(F.relu6, lower=0.0, upper=6.0)


def _hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    return Activation(lambda z: F.hardtanh(z, min_val, max_val), lower=min_val, upper=max_val)


def _clamp(z: Tensor, min: Any = None, max: Any = None) -> Activation:
    for edge in (min, max):
        if isinstance(edge, Tensor) and edge.requires_grad:
            raise SurgeonError("a clamp whose edge depends on the input has no pullback rule", "Use constant edges")
    return Activation(lambda z: torch.clamp(z, min, max), lower=min, upper=max, clamps=True, merges=True)


def _clamp_min(z: Tensor, min: Any) -> Activation:
    return _clamp(z, min=min)


def _clamp_max(z: Tensor, max: Any) -> Activation:
    return _clamp(z, max=max)


def _threshold(z: Tensor, threshold: float, value: float) -> Activation:
    return Activation(lambda z: F.threshold(z, threshold, value), lower=threshold)


def _leaky_relu(z: Tensor, negative_slope: float = 0.01) -> Activation:
    return Activation(lambda z: F.leaky_relu(z, negative_slope), lower=0.0, slope=negative_slope)


def _rrelu(z: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Activation:
    if training:
        raise SurgeonError("a random leaky ReLU in training mode draws its slopes", "Call .eval() on it first")
    return _leaky_relu(z, (lower + upper) / 2)


def _prelu(z: Tensor, weight: Tensor) -> Activation:
    weight = weight.detach()
    slope = weight.reshape(1, -1, *[1] * (z.dim() - 2)) if z.dim() > 1 and weight.numel() > 1 else weight
    return Activation(lambda z: torch.where(z > 0, z, slope * z), lower=0.0, slope=slope)


def calls(namespaces: tuple[Any, ...], *names: str) -> list[Any]:
    """All that is called one of `names` in the namespaces, the overloads of ATen's operators among it."""
    found = [getattr(space, name) for space in namespaces for name in names if hasattr(space, name)]
    packets = [call for call in found if isinstance(call, OpOverloadPacket)]
    return found + [getattr(packet, overload) for packet in packets for overload in packet.overloads()]


SPACES = (torch, F, torch.Tensor, torch._C._nn, torch.ops.aten)
_READERS: tuple[tuple[Callable[..., Activation], tuple[str, ...]], ...] = (
    (_relu, ("relu",)),
    (_relu6, ("relu6",)),
    (_hardtanh, ("hardtanh",)),
    (_clamp, ("clamp", "clip")),
    (_clamp_min, ("clamp_min",)),
    (_clamp_max, ("clamp_max",)),
    (_threshold, ("threshold",)),
    (_leaky_relu, ("leaky_relu",)),
    (_prelu, ("prelu",)),
    (_rrelu, ("rrelu",)),
)
ACTIVATIONS = {call: reader for reader, names in _READERS for call in calls(SPACES, *names)}
ACTIVATIONS_IN_PLACE = {
    call: reader for reader, names in _READERS for call in calls(SPACES, *(f"{name}_" for name in names))
}


@dataclass(frozen=True)
class Snapshot:
    """A tensor as it was when a call read it; one that was computed again counts as the same."""

    tensor: Tensor
    version: int

    def shows(self, x: Any) -> bool:
        """Whether `x` is that tensor, unchanged, or holds the same."""
        then = self.tensor
        if not isinstance(x, Tensor) or then._version != self.version or x.shape != then.shape:
            return False
        return (x.data_ptr(), x.stride()) == (then.data_ptr(), then.stride()) or torch.equal(x, then)


def _snapshot(value: Any) -> Any:
    return Snapshot(value, value._version) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Compared:
    """On a mask: a > b, or a >= b where it is not strict, or the opposite."""

    a: Any
    b: Any
    strict: bool
    holds: bool


@dataclass(frozen=True)
class Multiple:
    """On a tensor: slope * x."""

    x: Snapshot
    slope: Any


@dataclass(frozen=True)
class Clamped:
    """On a tensor: x between the edges, one of which is None."""

    x: Snapshot
    lower: Any
    upper: Any


Found = tuple[Tensor, Activation]
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
"""What `hidden` knows that puts its result in the place of its first argument."""

_ORDER = ("condition", "input", "mask", "other", "value")


def hidden(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Found | None:
    """The activation that `call` is in other words, with its pre-activation; None where it is none."""
    if not set(_ORDER).issuperset(kwargs):
        return None
    given, found = _positional(args, kwargs), None
    if call in _EXTREMA and len(given) == 2 and all(isinstance(value, Tensor) for value in given):
        found = _extremum(*given, largest=_EXTREMA[call] == "largest")
    elif call in _WHERE and len(given) == 3:
        found = _choice(*given)
    elif call in _FILLS and len(given) == 3:
        found = _choice(given[1], given[2], given[0])
    elif call in _PRODUCTS and _PRODUCTS[call] == "mul":
        found = _choice(given[1], given[0], 0.0) or _choice(given[0], given[1], 0.0)
    if found is None:
        return None
    shapes = [value.shape for value in given if isinstance(value, Tensor)]
    return found if torch.broadcast_shapes(*shapes) == found[0].shape else None  # else x is repeated as well


def note_clamp(result: Tensor, x: Tensor, activation: Activation) -> None:
    """Remember on `result` that it is x, clamped on one side."""
    if activation.merges and (activation.lower is None) != (activation.upper is None):
        _leave(result, Clamped(_snapshot(x), activation.lower, activation.upper))


def merged(x: Tensor, activation: Activation) -> Found:
    """activation(x), as one clamp of what x is a clamp of on one side, where that makes both edges of it."""
    note = _note(x)
    if not activation.merges or not isinstance(note, Clamped) or not note.x.shows(note.x.tensor):
        return x, activation
    if (activation.upper if note.upper is None else activation.lower) is None:
        return x, activation
    edges = [[_number(edge) for edge in pair if edge is not None] for pair in _pairs(note, activation)]
    if any(None in pair for pair in edges):
        return x, activation
    low, high = max(edges[0]), min(edges[1])  # type: ignore[type-var]
    return (note.x.tensor, _clamp(x, low, high)) if low <= high else (x, activation)  # type: ignore[operator]


def _pairs(*clamps: Clamped | Activation) -> tuple[list[Any], list[Any]]:
    return [clamp.lower for clamp in clamps], [clamp.upper for clamp in clamps]


def leave_note(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Remember on `result` what it says of an argument."""
    if call in _CONVERSIONS and isinstance(note := _note(args[0]), Compared):
        _leave(result, replace(note, holds=note.holds ^ (_CONVERSIONS[call] == "opposite")))
    known = (call in _COMPARISONS or call in _PRODUCTS) and call not in OVERWRITING
    if not known or not set(_ORDER).issuperset(kwargs):
        return
    a, b = given = _positional(args, kwargs)
    if call in _COMPARISONS:
        kind = _COMPARISONS[call]
        _leave(result, Compared(_snapshot(a), _snapshot(b), strict=kind in ("gt", "le"), holds=kind in ("gt", "ge")))
    elif _PRODUCTS[call] == "mul":
        for x, factor in (given, given[::-1]):
            if _flows(x) and not _flows(factor):
                _leave(result, Multiple(_snapshot(x), factor))
    elif _flows(a) and not _flows(b) and (isinstance(b, Tensor) or b):
        _leave(result, Multiple(_snapshot(a), 1 / b))


def _positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return (*args, *(kwargs[name] for name in _ORDER if name in kwargs))


def _leave(result: Tensor, note: Compared | Multiple | Clamped) -> None:
    result.surgeon_note = note, result._version  # type: ignore[attr-defined]


def _note(value: Any) -> Any:
    """The note on `value`, unless it was overwritten since."""
    note, version = getattr(value, "surgeon_note", (None, None))
    return note if version is not None and version == value._version else None


def _flows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _extremum(a: Tensor, b: Tensor, *, largest: bool) -> Found | None:
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


def _clamped(x: Tensor, low: Any, high: Any) -> Found:
    """x, clamped; min(max(x, low), high) is one clamp, and not two."""
    return merged(x, _clamp(x, low, high))


def _choice(condition: Any, value: Any, otherwise: Any) -> Found | None:
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


def _split(x: Tensor, edge: Any, above: Any, below: Any, *, strict: bool) -> Found | None:
    """x on one side of the edge, and on the other a constant, or a multiple of x."""
    if above is x and not _flows(below):
        if _equal(below, edge):
            return _clamped(x, edge, None)
        start, value = _number(edge), _number(below)
        if strict and start is not None and value is not None:
            return x, _threshold(x, start, value)
    if below is x and not _flows(above) and _equal(above, edge):
        return _clamped(x, None, edge)
    multiple = _note(below)
    if above is x and isinstance(multiple, Multiple) and multiple.x.shows(x) and _equal(edge, 0):
        return _leaky(x, multiple.slope)
    return None


def _leaky(x: Tensor, slope: Any) -> Found | None:
    """x > 0 ? x : slope * x, for slopes that are the same for every sample."""
    number = _number(slope)
    if number is not None:
        return x, _leaky_relu(x, number)
    if x.dim() < 2 or (slope.dim() == x.dim() and len(slope) != 1):
        return None
    return x, Activation(lambda z: torch.where(z > 0, z, slope * z), lower=0.0, slope=slope)


def _equal(a: Any, b: Any) -> bool:
    return bool((torch.as_tensor(a) == torch.as_tensor(b)).all())


def _number(value: Any) -> float | None:
    """The one number that `value` is, or is filled with; None for tensors that hold several."""
    if not isinstance(value, Tensor):
        return float(value)
    numbers = value.unique().tolist()
    return float(numbers[0]) if len(numbers) == 1 else None
