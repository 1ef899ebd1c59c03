"""Networks for any height and width: at which sizes a network runs, and whether a recorded program holds there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.export import Dim

REMEDY = "Leave out --dynamic-size"


def dynamic(sizes: Sequence[Any]) -> dict[int, Any]:
    """`dynamic_shapes` of a tensor: the batch, and each later one of its `sizes` that is symbolic."""
    free = [i for i, size in enumerate(sizes) if i and is_symbolic(size)]
    return {0: Dim("batch", min=1)} | dict.fromkeys(free, Dim.DYNAMIC)


def is_symbolic(*sizes: Any) -> bool:
    """Whether any of `sizes` is known at runtime alone."""
    return not all(isinstance(size, int) for size in sizes)


def is_same(one: Any, other: Any) -> bool:
    """Whether two sizes are equal at every size of the input; asked with ==, a symbol would be specialised."""
    return one == other if not is_symbolic(one, other) else str(one) == str(other)
