"""Scalar inputs are checked before anything runs. Torch-free."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from surgeon.bundle.scalars import check_scalar
from surgeon.errors import SurgeonError


@pytest.mark.parametrize("name", ["temperature", "step_size", "radius", "steps"])
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**5000, Fraction(10**400, 3)], ids=["large", "negative", "unprintable", "fraction"]
)
def test_a_number_beyond_all_floats_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SurgeonError, match=f"{name} is too large for a float"):
        check_scalar(name, value)


def test_more_steps_than_int64_holds_are_refused() -> None:
    with pytest.raises(SurgeonError, match="int64"):
        check_scalar("steps", 10**30)
