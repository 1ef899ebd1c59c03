"""Checks of an artifact's scalar inputs. Torch-free."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from surgeon.errors import SurgeonError

_TINY, _HUGE = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The smallest normal and the largest finite float32."""


def check_scalar(name: str, value: Any) -> Any:
    """Raise SurgeonError unless `value` makes sense as the scalar input `name`; return it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SurgeonError(f"{name} is {value!r}, not a number")
    try:
        number, whole = float(value), isinstance(value, numbers.Integral)
    except OverflowError:  # a whole number or fraction; with too many digits Python would not even print it
        raise SurgeonError(f"{name} is too large for a float", "Give a number nearer to 0") from None
    rules = {
        "temperature": (_TINY <= number <= _HUGE, "a number above 0 that float32 can hold"),
        "step_size": (-_HUGE <= number <= _HUGE, "a number that float32 can hold; a negative one descends"),
        "radius": (number > 0, "a number above 0; inf does not limit the perturbation"),
        "steps": (whole and 1 <= number < 2.0**63, "a whole number, 1 or more, that int64 can hold"),
    }
    fine, wanted = rules[name]
    if not fine:
        raise SurgeonError(f"{name} is {value}", f"Give {wanted}")
    return value


def shape_text(shape: Sequence[Any]) -> str:
    """The shape as text, such as "[any, 3, 224, 224]"."""
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
