"""Networks for any height and width: at which sizes a network runs, and whether a recorded program holds there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from surgeon.errors import ConversionError

REMEDY = "Leave out --dynamic-size"

_STEPS = ((1, 3), (0, 1), (1, 0), (2, 6), (7, 5), (16, 32), (32, 32))
"""What is added to height and width: sizes of every parity, and multiples of 16 and 32 for those that halve."""

_TOLERANCE = 1e-4


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


def other_sizes(network: nn.Module, example: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """(shape of an input, output) at sizes other than that of `example` [N, C, H, W], where `network` runs."""
    height, width = example.shape[2:]
    for high, wide in (*_STEPS, (height, width)):
        shape = (*example.shape[:2], height + high, width + wide)
        try:
            with torch.no_grad():
                output = network(example.new_zeros(shape))
        except (RuntimeError, ValueError):  # the network does not take this size, whoever runs it
            continue
        yield shape, output


def require_any_size(program: ExportedProgram, original: nn.Module, network: nn.Module, example: Tensor) -> None:
    """Raise ConversionError where `program`, recorded from `original` at `example`, computes something else elsewhere.

    `original` is `network` or its pullback, which also takes a cotangent and, if `program` does, a temperature. Which
    comparisons of sizes torch.export decided as it recorded, it says: where they come out the same the program holds,
    and where one does not (often one of strides, which means nothing) values are compared.
    """
    guarded = program.module(check_guards=True)
    guards: Callable[..., None] = getattr(guarded, "_guards_fn", lambda *_: None)
    recorded = program.module(check_guards=False)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    taken = [node.meta["val"] for node in placeholders if node.name in program.graph_signature.user_inputs]
    generator, tried = torch.Generator().manual_seed(0), 0
    for size, output in other_sizes(network, example):
        tried += 1
        cotangent = [output.shape] if len(taken) > 1 else []  # else the output may be several tensors
        shapes = [size, *cotangent, *(map(int, value.shape) for value in taken[2:])]
        values = [torch.rand(tuple(shape), generator=generator).to(example.dtype) for shape in shapes]
        failed = _failed(guards, values)
        if failed is not None and not _agree(recorded, original, values):
            raise ConversionError(
                f"the network cannot be recorded for any size: at {size[2]}x{size[3]} it does something else than at "
                f"{example.shape[2]}x{example.shape[3]} ({failed})",
                REMEDY,
            )
    if not tried:
        raise ConversionError(f"the network takes inputs of {example.shape[2]}x{example.shape[3]} alone", REMEDY)


def _failed(guards: Callable[..., None], values: list[Tensor]) -> str | None:
    """The first comparison that comes out otherwise for `values` than it was recorded; None where none does."""
    try:
        guards(*values)
    except (AssertionError, RuntimeError) as error:
        return str(error).strip().splitlines()[0].removeprefix("Guard failed: ")
    return None


def _agree(recorded: nn.Module, original: nn.Module, values: list[Tensor]) -> bool:
    with torch.no_grad():
        expected, _ = pytree.tree_flatten(original(*(value.clone() for value in values)))
        try:
            found, _ = pytree.tree_flatten(recorded(*values))
        except RuntimeError:  # of shapes that do not fit
            return False
    return all(
        one.shape == other.shape and (one - other).norm() <= _TOLERANCE * other.norm()
        for one, other in zip(found, expected, strict=True)
    )
