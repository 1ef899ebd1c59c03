"""Checks that a program recorded with free height and width computes the network's values at other sizes."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from surgeon.errors import ConversionError
from surgeon.network.sizes import REMEDY, is_symbolic

_STEPS = ((1, 3), (0, 1), (1, 0), (2, 6), (7, 5), (16, 32), (32, 32))
"""Added to height and width: every parity, and multiples of 16 and 32 for networks that halve repeatedly."""
_SMALLEST = 8  # pixels; also the smallest size of a photo
_TOLERANCE = 1e-4


def other_sizes(network: nn.Module, example: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """(shape of an input, output) at sizes other than that of `example` [N, C, H, W], where `network` runs."""
    height, width = example.shape[2:]
    yield from _outputs(network, example, [(height + high, width + wide) for high, wide in (*_STEPS, (height, width))])


def _outputs(
    network: nn.Module, example: Tensor, sizes: Iterable[tuple[int, int]]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    for size in sizes:
        shape = (*example.shape[:2], *size)
        try:
            with torch.no_grad():
                output = network(example.new_zeros(shape))
        except (RuntimeError, ValueError, ConversionError):  # the network does not take this size
            continue
        yield shape, output


def require_any_size(program: ExportedProgram, original: nn.Module, network: nn.Module, example: Tensor) -> None:
    """Raise ConversionError where `program`, recorded from `original` at `example`, is wrong at other sizes.

    `original` is `network` or its pullback, which also takes a cotangent and, if `program` does, a temperature.
    torch.export lists the size comparisons that it decided while recording. At sizes where all of them have the same
    result the program is right. Where one differs (often a comparison of strides, which is harmless), values are
    compared. Both are done at a few sizes, and at the sizes nearest to the example where a comparison changes.
    """
    comparisons = Comparisons(program)
    recorded = program.module(check_guards=False)
    generator = torch.Generator().manual_seed(0)

    def compare(size: tuple[int, ...], output: Tensor) -> None:
        # A network that returns several tensors has no pullback here, and needs no cotangent.
        shapes = comparisons.shapes(size, output.shape if isinstance(output, Tensor) else ())
        failed = comparisons.failed(shapes)
        values = [torch.rand(shape, generator=generator).to(example.dtype) for shape in shapes]
        if failed and not _agree(recorded, original, values):
            raise ConversionError(
                f"the network cannot be recorded for any size: at {size[2]}x{size[3]} it does something else than at "
                f"{example.shape[2]}x{example.shape[3]} ({min(failed, key=len)})",
                REMEDY,
            )

    others = list(other_sizes(network, example))
    if not others:
        raise ConversionError(f"the network takes inputs of {example.shape[2]}x{example.shape[3]} alone", REMEDY)
    for size, output in others:
        compare(size, output)
    for points in comparisons.turning_points(*example.shape):
        compared: list[frozenset[str]] = []
        for point, failed in points:
            if any(failed <= more for more in compared):
                continue  # compared already, together with other comparisons that change
            for size, output in _outputs(network, example, [point]):
                compare(size, output)
                compared.append(failed)


class Comparisons:
    """The size comparisons that torch.export decided while it recorded `program`, evaluated for other sizes.

    torch.export writes them as Python expressions, in which L['input'].size() is the shape of an input.
    """

    def __init__(self, program: ExportedProgram) -> None:
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        inputs = [node for node in placeholders if node.name in program.graph_signature.user_inputs]
        self._names, self._inputs = [node.name for node in inputs], [node.meta["val"] for node in inputs]
        texts = list(dict.fromkeys(program._guards_code))
        shaped = [re.sub(r"L\['(\w+)'\](?:\[\d+\])*\.size\(\)", r"shapes['\1']", text) for text in texts]
        self._codes = [(text, compile(code, "<guard>", "eval")) for text, code in zip(texts, shaped, strict=True)]
        uppers = [bound.upper for bound in program.range_constraints.values()]
        self._bounds = [int(upper) for upper in uppers if upper.is_Integer]  # and not infinite

    def shapes(self, input: Sequence[int], output: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes of the program's inputs: the network's input and, if it has them, cotangent and temperature."""
        later = [tuple(map(int, value.shape)) for value in self._inputs[2:]]
        return [tuple(input), tuple(output), *later][: len(self._inputs)]

    def failed(self, shapes: Sequence[Any]) -> frozenset[str]:
        """The comparisons with another result for `shapes` than recorded."""
        return frozenset(text for text, code in self._codes if self._fails(code, shapes))

    def turning_points(
        self, batch: int, channels: int, height: int, width: int
    ) -> Iterator[list[tuple[tuple[int, int], frozenset[str]]]]:
        """The nearest (height, width) at which a comparison changes, with all comparisons that change there.

        One list each for smaller and larger heights, widths and both, the smallest first. The search goes from
        _SMALLEST to four times the size; beyond that, only upper bounds are tried.
        """
        sides = [*range(_SMALLEST, 1 + max(4 * max(height, width), 256)), *(bound + 1 for bound in self._bounds)]
        for line in ([(s, width) for s in sides], [(height, s) for s in sides], [(s, s) for s in sides]):
            line.sort(key=lambda size: abs(size[0] - height) + abs(size[1] - width))
            failed = {size: self.failed(self._symbolic((batch, channels, *size))) for size in line}
            for smaller in (True, False):
                side = [size for size in line if (sum(size) < height + width) == smaller]
                nearest = {text: size for size in reversed(side) for text in failed[size]}
                yield [(size, failed[size]) for size in sorted(set(nearest.values()))]

    def _symbolic(self, shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
        """As `shapes`, with the cotangent's sizes computed from their formulas; None for a size without a formula."""
        pairs = zip(self._inputs[0].shape, shape, strict=True)
        known = {size.node.expr: value for size, value in pairs if is_symbolic(size)}

        def value(size: Any) -> int | None:
            if not is_symbolic(size):
                return int(size)
            computed = size.node.expr.subs(known)
            return int(computed) if computed.is_Integer else None

        return [shape, *(tuple(map(value, port.shape)) for port in self._inputs[1:])]

    def _fails(self, code: CodeType, shapes: Sequence[Any]) -> bool:
        named = collections.defaultdict(lambda: shapes[0], zip(self._names, shapes, strict=True))
        try:
            return not eval(code, {"torch": torch, "math": math, "shapes": named})
        except TypeError:  # a size is not known
            return False
        except ArithmeticError:  # the network does not take the size
            return True


def _agree(recorded: nn.Module, original: nn.Module, values: list[Tensor]) -> bool:
    with torch.no_grad():
        expected, _ = pytree.tree_flatten(original(*(value.clone() for value in values)))
        try:
            computed, _ = pytree.tree_flatten(recorded(*values))
        except RuntimeError:  # shapes do not fit
            return False
    return all(
        value.shape == right.shape and (value - right).norm() <= _TOLERANCE * right.norm()
        for value, right in zip(computed, expected, strict=True)
    )
