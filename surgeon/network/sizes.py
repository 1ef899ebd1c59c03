"""Sizes that are known only at run time: the batch, and with `dynamic_size` height and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.export import Dim

REMEDY = "Leave out --dynamic-size"


def dynamic(sizes: Sequence[Any]) -> dict[int, Any]:
    """`dynamic_shapes` of a tensor: the batch, and every later symbolic one of its `sizes`."""
    free = [i for i, size in enumerate(sizes) if i and is_symbolic(size)]
    return {0: Dim("batch", min=1)} | dict.fromkeys(free, Dim.DYNAMIC)


def is_symbolic(*sizes: Any) -> bool:
    """Whether any of `sizes` is known only at run time."""
    return not all(isinstance(size, int) for size in sizes)


def is_same(one: Any, other: Any) -> bool:
    """Whether two sizes are equal for every size of the input. Comparing symbols with == would specialise them."""
    return one == other if not is_symbolic(one, other) else str(one) == str(other)
