"""The table of operators that have a rule: one line each, from which all tests of rules derive.

`tests/conversion/test_rules.py` compares the rules at the samples with autograd and with slow formulas, and traces and
exports them; `tests/conversion/test_properties.py` does it at random arguments. A line is the samples, several where
options matter, and for operators with geometry a draw of random arguments; without one, the samples at random sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from surgeon.conversion.gates import BoundGate
from surgeon.conversion.rules import RULES
from tests import draws
from tests.draws import Arguments, Call, Draw, pointwise

aten = torch.ops.aten
N = "N"
"""Stands for the batch, in shapes and in arguments."""


@dataclass(frozen=True)
class Slot:
    """A tensor among the arguments: random normal around `shift`; `active` ones get a cotangent."""

    shape: tuple[Any, ...]
    active: bool
    shift: float


def x(*shape: Any, shift: float = 0.0) -> Slot:
    """A tensor that leads to the input."""
    return Slot(shape, True, shift)


def w(*shape: Any, shift: float = 0.0) -> Slot:
    """A parameter."""
    return Slot(shape, False, shift)


@dataclass(frozen=True)
class Sample:
    """Arguments of one call, with slots for tensors. `used` as of `Call`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    used: tuple[int, ...] | None = None

    @property
    def slots(self) -> list[Slot]:
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Slot)]

    def call(self, batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Call:
        """The call with a batch of that size and random values."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [[batch if size == N else size for size in slot.shape] for slot in self.slots]
        values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        moved = [(value + slot.shift).to(dtype) for value, slot in zip(values, self.slots, strict=True)]
        return self.filled(moved, batch)

    def filled(self, tensors: list[Tensor], batch: int) -> Call:
        """The call with `tensors` in the slots; those in active ones require a gradient."""
        values = iter(tensors)

        def fill(leaf: Any) -> Any:
            return next(values).requires_grad_(leaf.active) if isinstance(leaf, Slot) else batch if leaf == N else leaf

        return Call(pytree.tree_map(fill, self.args), self.kwargs, self.used)


def s(*args: Any, used: tuple[int, ...] | None = None, **kwargs: Any) -> Sample:
    """Write a sample as the call is written."""
    return Sample(args, kwargs, used)


@dataclass(frozen=True)
class Operator:
    """A line of the table."""

    samples: tuple[Sample, ...]
    draw: Arguments


def op(*samples: Sample, draw: Arguments | None = None) -> Operator:
    """Write a line; without `draw`, random arguments are one of the samples with other sizes."""

    def resized(d: Draw) -> Call:
        sample = d.one_of(*samples)
        known = {size for slot in sample.slots for size in slot.shape if size not in (1, N)}
        sizes = {size: d.count(1, 5) for size in sorted(known)} | {N: d.count(1, 4), 1: 1}
        tensors = [d.parameter(*map(sizes.__getitem__, slot.shape)) + slot.shift for slot in sample.slots]
        return sample.filled(tensors, sizes[N])

    return Operator(samples, draw or resized)


DIFFERENTIABLE: dict[OpOverload, Callable[..., Any]] = {aten.copy.default: lambda x, source: x.clone().copy_(source)}
"""Other forms of operators that autograd does not know by themselves."""


def outputs(call: Call, out: Any) -> list[Tensor]:
    """The outputs of the call that get a cotangent."""
    if isinstance(out, Tensor):
        return [out]
    return [out[i] for i in call.used or ((0,) if isinstance(out, tuple) else range(len(out)))]


def cotangents(operator: OpOverload, call: Call, seed: int = 1) -> list[Tensor]:
    """Random, with both signs, for the outputs in use."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        used = outputs(call, operator(*call.args, **call.kwargs))
    return [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in used]


def pull(operator: OpOverload, call: Call, g: list[Tensor], gate: BoundGate | None = None) -> list[Tensor]:
    """The cotangents that the operator's rule gives for the tensors of the call that require a gradient, in order."""
    args = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, call.args)
    active = [tensor.requires_grad for tensor in call.tensors]
    return pull_active(operator, Call(args, call.kwargs, call.used), active, g, gate)


def pull_active(
    operator: OpOverload, call: Call, active: list[bool], g: list[Tensor], gate: BoundGate | None = None
) -> list[Tensor]:
    """`pull`, with a mark for each tensor of the call in place of what it requires."""
    out = operator(*call.args, **call.kwargs)
    given: Any = g[0]
    if not isinstance(out, Tensor):
        places = call.used or ((0,) if isinstance(out, tuple) else range(len(out)))
        given = [dict(zip(places, g, strict=True)).get(i) for i in range(len(out))]
    options = {} if RULES[operator].kind == "exact" else {"gate": gate}
    pulled = _entries(call.args, RULES[operator].backward(given, out, *call.args, **call.kwargs, **options))
    assert len(pulled) == len(active)
    wanted = [entry for entry, is_active in zip(pulled, active, strict=True) if is_active]
    return [entry() if callable(entry) else entry for entry in wanted]


def _entries(args: Any, pulled: Any) -> list[Any]:
    """The rule's entry for each tensor among `args`; None where the rule has none."""
    found: list[Any] = []
    for i, argument in enumerate(args):
        entry = pulled[i] if pulled is not None and i < len(pulled) else None
        if isinstance(argument, list):
            found += _entries(argument, entry)
        elif isinstance(argument, Tensor):
            found.append(entry)
    return found


scaled = pointwise(lambda d: d.number(-2, 2), lambda d: d.one_of(1, -2))


def convolutions() -> list[Sample]:
    """Ordinary ones: options in the order stride, padding, dilation, transposed, output padding, groups."""
    return [
        s(x(N, 2, 8), w(3, 2, 3), w(3), [1], [1], [1], False, [0], 1),
        s(x(N, 2, 9, 8), w(3, 2, 3, 2), w(3), [1, 1], [1, 0], [1, 1], False, [0, 0], 1),
        s(x(N, 3, 8, 9), w(6, 1, 3, 3), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 3),
        s(x(N, 3, 8, 9), w(3, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 3),
        s(x(N, 4, 9, 9), w(6, 2, 3, 3), x(6), [2, 1], [2, 0], [1, 2], False, [0, 0], 2),
        s(x(N, 4, 6, 6), w(6, 2, 1, 3), None, [1, 1], [0, 3], [1, 1], False, [0, 0], 2),
        s(x(N, 2, 5, 5, 6), w(3, 2, 2, 3, 2), None, [2, 1, 2], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1),
        s(x(N, 3, 6), w(3, 1, 3), None, [3], [0], [1], False, [0], 3),
        s(x(N, 2, 6), w(4, 2, 1), None, [1], [3], [1], False, [0], 1),
        s(x(N, 3, 5), w(3, 2, 3), w(2), [2], [1], [1], True, [1], 1),
        s(x(N, 4, 5, 5), w(4, 3, 3, 3), w(6), [2, 3], [1, 0], [1, 1], True, [1, 0], 2),
        s(x(N, 2, 5, 5), w(2, 1, 3, 3), None, [1, 1], [0, 0], [3, 3], True, [2, 2], 1),
        s(x(N, 2, 3, 3, 3), w(2, 1, 2, 2, 2), None, [2, 2, 1], [0, 1, 0], [1, 1, 1], True, [0, 1, 0], 1),
    ]


def max_pools() -> list[Sample]:
    """Options in the order kernel, stride, padding, dilation, ceil mode."""
    return [
        s(x(N, 2, 9, 8), [3, 3], [2, 2], [1, 1]),
        s(x(N, 2, 8, 9), [3, 3], [2, 2], [0, 0], [1, 1], True),
        s(x(N, 2, 8, 9), [3, 2], [2, 2], [1, 0], [1, 1], True),
        s(x(N, 1, 9, 8), [3, 2], [1, 1], [1, 0], [2, 3]),
        s(x(N, 2, 6, 6, shift=-3.0), [3, 3], [1, 1], [1, 1]),
        s(x(3, 6, 6), [2, 2], [3, 3]),
        s(x(N, 2, 8, 8), [2, 2]),
        # PyTorch drops a window that begins in the padding.
        s(x(N, 2, 9, 8, shift=-3.0), [2, 3], [2, 2], [1, 1], [1, 1], True),
        s(x(N, 2, 6, 6, shift=-4.0), [3, 3], [1, 1], [1, 1], [2, 2], True),
    ]


OPERATORS: dict[OpOverload, Operator] = {
    # activations
    aten.relu.default: op(s(x(N, 3, 5)), draw=pointwise()),
    aten.hardtanh.default: op(
        s(x(N, 6)),
        s(x(N, 6), 0.0, 1.5),
        s(x(N, 6), 0, 6),
        draw=pointwise(lambda d: d.number(-1, 0), lambda d: d.number(0.1, 1)),
    ),
    aten.clamp.default: op(s(x(N, 6), -0.5, 0.7), s(x(N, 6), 0.2), s(x(N, 6), None, 0.3), draw=draws.edges),
    aten.clamp.Tensor: op(
        s(x(N, 3, 5), w(5)),
        s(x(N, 3, 5), None, w(3, 1)),
        s(x(N, 3), w(3, shift=-1.0), w(3, shift=1.0)),
        draw=draws.edge_tensors,
    ),
    aten.threshold.default: op(
        s(x(N, 3, 4), 0.1, 20.0), s(x(N, 3), 0, 0), draw=pointwise(lambda d: d.number(-1, 1), lambda d: d.number(-9, 9))
    ),
    aten.leaky_relu.default: op(s(x(N, 6)), s(x(N, 6), 0.3), draw=pointwise(lambda d: d.number(-1, 1))),
    aten.prelu.default: op(
        s(x(N, 3, 5), x(3)), s(x(N, 3, 5), x(1)), s(x(N, 3), x(3)), s(x(N, 3, 2, 2), w(3)), draw=draws.prelu
    ),
    # arithmetic
    aten.add.Tensor: op(
        s(x(N, 3), x(N, 3)),
        s(x(N, 3, 5), x(3, 1), alpha=2),
        s(x(1, 5), x(N, 3, 1)),
        s(x(N, 3), 2),
        draw=draws.with_alpha,
    ),
    aten.add.Scalar: op(s(x(N, 3), 2.5), draw=scaled),
    aten.sub.Tensor: op(
        s(x(N, 3), x(3)), s(x(N, 3, 1), x(N, 1, 5), alpha=-2), s(x(N, 3), w(N, 3)), draw=draws.with_alpha
    ),
    aten.sub.Scalar: op(s(x(N, 3), 2.5, 2), draw=scaled),
    aten.rsub.Tensor: op(s(x(N, 3), x(N, 1)), s(x(N, 3), x(3), alpha=2), draw=draws.with_alpha),
    aten.rsub.Scalar: op(s(x(N, 3), 2), s(x(N, 3), 1.0, 3), draw=scaled),
    aten.mul.Tensor: op(s(x(N, 3), x(N, 1)), s(x(N, 3, 5, 5), x(N, 3, 1, 1)), s(x(N, 3), 2), draw=draws.two_operands),
    aten.mul.Scalar: op(s(x(N, 3), -2.5), draw=pointwise(lambda d: d.number(0.5, 2))),
    aten.div.Tensor: op(
        s(x(N, 3), x(N, 3, shift=9)), s(x(N, 3), x(3, shift=-9)), s(x(N, 3), 2), draw=draws.two_operands
    ),
    aten.div.Scalar: op(s(x(N, 3), 3), draw=pointwise(lambda d: d.number(0.5, 2))),
    aten.neg.default: op(s(x(N, 3)), draw=pointwise()),
    # convolutions
    aten.convolution.default: op(*convolutions(), draw=draws.convolution),
    # matrix products
    aten.linear.default: op(s(x(N, 3), x(5, 3), x(5)), s(x(N, 2, 6, 3), x(5, 3)), s(x(N, 3), w(5, 3), None)),
    aten.addmm.default: op(
        s(x(5), x(N, 3), x(3, 5)), s(x(N, 5), x(N, 3), x(3, 5), beta=2, alpha=-3), s(x(1, 5), x(N, 3), x(3, 5), beta=2)
    ),
    aten.mm.default: op(s(x(N, 3), x(3, 5))),
    aten.bmm.default: op(s(x(N, 3, 5), x(N, 5, 2))),
    # norms
    aten._native_batch_norm_legit_no_training.default: op(
        s(x(N, 3), w(3), w(3), w(3), w(3, shift=9), 0.1, 1e-3),
        s(x(N, 3, 2, 5), None, None, w(3), w(3, shift=9), 0.1, 0.5),
    ),
    # pools
    aten.max_pool2d_with_indices.default: op(*max_pools(), draw=draws.max_pool2d),
    aten.adaptive_max_pool2d.default: op(s(x(N, 2, 5, 6), [1, 1])),
    aten.max_pool3d_with_indices.default: op(
        s(x(N, 1, 5, 6, 5), [2, 3, 2], [2, 2, 1], [1, 1, 0]),
        s(x(N, 1, 5, 5, 6), [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], True),
        draw=draws.max_pool3d,
    ),
    aten.avg_pool1d.default: op(
        s(x(N, 2, 9), [3], [2], [1]), s(x(N, 2, 8), [3], [2], [1], True, False), draw=draws.average_pool(1)
    ),
    aten.avg_pool2d.default: op(
        s(x(N, 2, 8, 9), [2, 2]),
        s(x(N, 2, 9, 9), [2, 2], [2, 2], [0, 0], True, False),
        s(x(N, 2, 9, 8), [3, 3], [1, 2], [1, 1], False, False),
        s(x(N, 2, 8, 8), [3, 3], [2, 2], [1, 1], True, True),
        s(x(N, 2, 8, 8), [3, 2], [2, 2], [1, 1], True, False, 5),
        s(x(N, 2, 8, 6), [2, 3]),
        s(x(2, 8, 8), [3, 3], [1, 1]),
        draw=draws.average_pool(2),
    ),
    aten.avg_pool3d.default: op(
        s(x(N, 1, 5, 5, 6), [2, 2, 2]),
        s(x(N, 1, 5, 6, 5), [2, 3, 2], [1, 2, 2], [1, 1, 0], True, False),
        draw=draws.average_pool(3),
    ),
    aten._adaptive_avg_pool2d.default: op(
        s(x(N, 2, 8, 9), [3, 5]),
        s(x(N, 2, 5, 3), [8, 6]),
        s(x(N, 2, 6, 6), [1, 6]),
        s(x(2, 6, 6), [1, 3]),
        draw=draws.adaptive_pool(2),
    ),
    aten._adaptive_avg_pool3d.default: op(s(x(N, 2, 5, 6, 3), [2, 3, 5]), draw=draws.adaptive_pool(3)),
    aten.adaptive_avg_pool1d.default: op(s(x(N, 2, 9), [5]), draw=draws.adaptive_pool(1)),
    # reductions
    aten.mean.dim: op(s(x(N, 3, 5), [1]), s(x(N, 3, 5), [-1, -2], True), s(x(N, 3, 5), [0, 2]), draw=draws.reduction),
    aten.sum.dim_IntList: op(
        s(x(N, 3, 5), [2]), s(x(N, 3, 5), [-2, 0], True), s(x(N, 3), None), s(x(N, 3), []), draw=draws.reduction
    ),
    aten.mean.default: op(s(x(N, 3, 5)), draw=pointwise()),
    aten.sum.default: op(s(x(N, 3, 5)), draw=pointwise()),
    # resampling
    aten.upsample_nearest2d.vec: op(
        s(x(N, 2, 3, 5), None, [2.0, 3.0]),
        s(x(N, 2, 8, 6), [5, 13], None),
        s(x(N, 2, 5, 6), None, [1.7, 0.6]),
        s(x(N, 2, 5, 6), [10, 3], None),
        draw=draws.resampling(),
    ),
    aten.upsample_bilinear2d.vec: op(
        s(x(N, 2, 3, 5), [8, 9], False, None),
        s(x(N, 2, 5, 3), [13, 2], True, None),
        s(x(N, 2, 5, 6), None, False, [1.7, 0.6]),
        s(x(N, 2, 1, 5), None, True, [2.0, 2.0]),
        draw=draws.resampling(True, False),
    ),
    # smooth activations
    aten.silu.default: op(s(x(N, 6)), draw=pointwise()),
    aten.mish.default: op(s(x(N, 6)), draw=pointwise()),
    # shapes
    aten.view.default: op(s(x(N, 3, 5), [N, 15]), s(x(N, 6), [-1, 2, 3]), draw=draws.reshaped),
    aten.reshape.default: op(s(x(N, 3, 5), [N, 5, -1]), draw=draws.reshaped),
    aten._unsafe_view.default: op(s(x(N, 3, 5), [N, 15]), draw=draws.reshaped),
    aten.unsqueeze.default: op(s(x(N, 3), 1), s(x(N, 3), -1), draw=draws.at_axis),
    aten.squeeze.default: op(s(x(N, 3, 1)), draw=pointwise()),
    aten.squeeze.dim: op(s(x(N, 1, 3), 1), s(x(N, 3, 2), -1), draw=draws.at_axis),
    aten.squeeze.dims: op(s(x(N, 1, 3, 1), [1, -1]), draw=draws.at_axes),
    aten.flatten.using_ints: op(s(x(N, 3, 5), 1), draw=draws.flattened),
    aten.clone.default: op(s(x(N, 3)), draw=pointwise()),
    aten.alias.default: op(s(x(N, 3)), draw=pointwise()),
    aten.lift_fresh_copy.default: op(s(x(N, 3)), draw=pointwise()),
    aten.dropout.default: op(s(x(N, 3), 0.5, False), draw=pointwise(lambda d: d.number(0, 1), lambda d: False)),
    aten._to_copy.default: op(s(x(N, 3), dtype=torch.float32), s(x(N, 3), dtype=torch.float64), draw=draws.cast),
    aten.copy.default: op(s(x(N, 3), x(1, 3)), s(w(N, 3), x(N, 3)), draw=draws.copied),
    aten.permute.default: op(s(x(N, 3, 5, 6), [0, 3, 1, 2]), s(x(N, 3, 5), [-1, 0, -2]), draw=draws.permuted),
    aten.transpose.int: op(s(x(N, 3, 5), 1, -1), draw=draws.transposed),
    aten.t.default: op(s(x(N, 3))),
    aten.expand.default: op(s(x(N, 1, 5), [-1, 3, -1]), s(x(3, 1), [2, 3, 5]), s(x(N, 3), [N, 3]), draw=draws.expanded),
    aten.cat.default: op(
        s([x(N, 3), w(N, 2), x(N, 5)], 1), s([x(N, 2, 3), x(N, 2, 1)], -1), s([x(3, 2), x(1, 2)]), draw=draws.joined
    ),
    aten.stack.default: op(s([x(N, 3), x(N, 3)], 1), s([x(N, 3), w(N, 3)], -1), draw=draws.stacked),
    aten.split_with_sizes.default: op(
        s(x(N, 6), [1, 2, 3], 1, used=(0, 2)), s(x(N, 6, 2), [2, 2, 2], -2, used=(1,)), draw=draws.split_unevenly
    ),
    aten.split.Tensor: op(s(x(N, 5), 2, 1, used=(0, 1, 2)), s(x(N, 2, 6), 3, -1, used=(1,)), draw=draws.split_evenly),
    aten.unbind.int: op(s(x(N, 3), 1, used=(0, 2)), s(x(N, 2, 3), -1, used=(0, 1, 2)), draw=draws.at_axis),
    aten.slice.Tensor: op(
        s(x(N, 6), 1, 1, -1),
        s(x(N, 6), -1, -3, 9223372036854775807),
        s(x(N, 6), 1, -100, 3),
        s(x(N, 6, 2), 1, 1, 6, 2),
        s(x(N, 8), 1, 0, 8, 3),
        s(x(N, 8), -1, None, None, 2),
        s(x(N, 6), 1, 0, 100),
        draw=draws.sliced,
    ),
    aten.select.int: op(s(x(N, 3, 5), 1, 1), s(x(N, 3, 5), -1, -2), draw=draws.selected),
    aten.unfold.default: op(s(x(N, 3, 8), 2, 3, 2), s(x(N, 9, 2), -2, 4, 1), s(x(N, 6), 1, 2, 3), draw=draws.unfolded),
    aten.constant_pad_nd.default: op(
        s(x(N, 3, 5), [1, 2]), s(x(N, 3, 5), [1, -2, 0, 1], 2.5), s(x(N, 3, 5), [-1, -1, 2, -1]), draw=draws.padded
    ),
}
