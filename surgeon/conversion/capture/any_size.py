"""Whether a program recorded with free height and width computes what the network does at other sizes."""

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
"""What is added to height and width: sizes of every parity, and multiples of 16 and 32 for those that halve."""
_SMALLEST = 8  # pixels: what is shown of a photo, too, begins there
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
        except (RuntimeError, ValueError, ConversionError):  # the network does not take this size, whoever runs it
            continue
        yield shape, output


def require_any_size(program: ExportedProgram, original: nn.Module, network: nn.Module, example: Tensor) -> None:
    """Raise ConversionError where `program`, recorded from `original` at `example`, computes something else elsewhere.

    `original` is `network` or its pullback, which also takes a cotangent and, if `program` does, a temperature. Which
    comparisons of sizes torch.export decided as it recorded, it says: where they come out the same the program holds,
    and where one does not (often one of strides, which means nothing) values are compared. That is done at a few sizes,
    and wherever a comparison turns out otherwise nearest to the example.
    """
    comparisons = Comparisons(program)
    recorded = program.module(check_guards=False)
    generator = torch.Generator().manual_seed(0)

    def compare(size: tuple[int, ...], output: Tensor) -> None:
        # Of a network that returns several tensors no pullback is taken, and no cotangent is needed.
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
                continue  # they came out otherwise together with others, and nothing else was computed
            for size, output in _outputs(network, example, [point]):
                compare(size, output)
                compared.append(failed)


class Comparisons:
    """The comparisons of sizes that torch.export decided as it recorded `program`, to be asked for other sizes.

    torch.export writes them as lines of Python, in which L['input'].size() is the shape of an input.
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
        """Of each input of the program: the network's input, the cotangent, the temperature, or the first of them."""
        later = [tuple(map(int, value.shape)) for value in self._inputs[2:]]
        return [tuple(input), tuple(output), *later][: len(self._inputs)]

    def failed(self, shapes: Sequence[Any]) -> frozenset[str]:
        """The comparisons that come out otherwise for `shapes` than they were recorded."""
        return frozenset(text for text, code in self._codes if self._fails(code, shapes))

    def turning_points(
        self, batch: int, channels: int, height: int, width: int
    ) -> Iterator[list[tuple[tuple[int, int], frozenset[str]]]]:
        """The nearest sizes at which a comparison comes out otherwise, with all that do: another height, width or both.

        A list for smaller and one for larger ones each, the smallest first. Looked for from _SMALLEST to four times the
        size; beyond, only at an upper bound.
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
        """As `shapes`, with the sizes of the cotangent as formulas have them; None for one that has no formula."""
        pairs = zip(self._inputs[0].shape, shape, strict=True)
        known = {size.node.expr: value for size, value in pairs if is_symbolic(size)}

        def value(size: Any) -> int | None:
            if not is_symbolic(size):
                return int(size)
            found = size.node.expr.subs(known)
            return int(found) if found.is_Integer else None

        return [shape, *(tuple(map(value, given.shape)) for given in self._inputs[1:])]

    def _fails(self, code: CodeType, shapes: Sequence[Any]) -> bool:
        named = collections.defaultdict(lambda: shapes[0], zip(self._names, shapes, strict=True))
        try:
            return not eval(code, {"torch": torch, "math": math, "shapes": named})
        except TypeError:  # of a size that is not known
            return False
        except ArithmeticError:  # of a size that the network does not take
            return True


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
