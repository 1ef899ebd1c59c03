"""Sample arguments for every operator that has a rule: one line each, several samples where its options matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

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
    """Arguments of one call. `used` are the outputs that get a cotangent, where the operator has several."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    used: tuple[int, ...] | None = None

    @property
    def slots(self) -> list[Slot]:
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Slot)]

    def tensors(self, batch: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """A value for each slot."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [[batch if size == N else size for size in slot.shape] for slot in self.slots]
        values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return [(value + slot.shift).to(dtype) for value, slot in zip(values, self.slots, strict=True)]

    def arguments(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        """The positional arguments with `tensors` in their slots, and the batch of the first of them for N."""
        values = iter(tensors)
        batch = tensors[0].shape[0]
        return pytree.tree_map(
            lambda leaf: next(values) if isinstance(leaf, Slot) else batch if leaf == N else leaf, self.args
        )

    def outputs(self, out: Any) -> list[Tensor]:
        """The outputs that get a cotangent."""
        return [out] if self.used is None else [out[i] for i in self.used]


def s(*args: Any, used: tuple[int, ...] | None = None, **kwargs: Any) -> Sample:
    """Write a sample as the call is written."""
    return Sample(args, kwargs, used)


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
        s(x(N, 3, 5), w(3, 2, 3), w(2), [2], [1], [1], True, [1], 1),
        s(x(N, 4, 5, 5), w(4, 3, 3, 3), w(6), [2, 3], [1, 0], [1, 1], True, [1, 0], 2),
        s(x(N, 2, 5, 5), w(2, 1, 3, 3), None, [1, 1], [0, 0], [3, 3], True, [2, 2], 1),
        s(x(N, 2, 3, 3, 3), w(2, 1, 2, 2, 2), None, [2, 2, 1], [0, 1, 0], [1, 1, 1], True, [0, 1, 0], 1),
    ]


def max_pools() -> list[Sample]:
    """Options in the order kernel, stride, padding, dilation, ceil mode."""
    return [
        s(x(N, 2, 9, 8), [3, 3], [2, 2], [1, 1], used=(0,)),
        s(x(N, 2, 8, 9), [3, 3], [2, 2], [0, 0], [1, 1], True, used=(0,)),
        s(x(N, 2, 8, 9), [3, 2], [2, 2], [1, 0], [1, 1], True, used=(0,)),
        s(x(N, 1, 9, 8), [3, 2], [1, 1], [1, 0], [2, 3], used=(0,)),
        s(x(N, 2, 6, 6, shift=-3.0), [3, 3], [1, 1], [1, 1], used=(0,)),
        s(x(3, 6, 6), [2, 2], [3, 3], used=(0,)),
        s(x(N, 2, 8, 8), [2, 2], used=(0,)),
    ]


SAMPLES: dict[OpOverload, list[Sample]] = {
    # activations
    aten.relu.default: [s(x(N, 3, 5))],
    aten.hardtanh.default: [s(x(N, 6)), s(x(N, 6), 0.0, 1.5), s(x(N, 6), 0, 6)],
    aten.clamp.default: [s(x(N, 6), -0.5, 0.7), s(x(N, 6), 0.2), s(x(N, 6), None, 0.3)],
    aten.clamp.Tensor: [
        s(x(N, 3, 5), w(5)),
        s(x(N, 3, 5), None, w(3, 1)),
        s(x(N, 3), w(3, shift=-1.0), w(3, shift=1.0)),
    ],
    aten.threshold.default: [s(x(N, 3, 4), 0.1, 20.0), s(x(N, 3), 0, 0)],
    aten.leaky_relu.default: [s(x(N, 6)), s(x(N, 6), 0.3)],
    aten.prelu.default: [s(x(N, 3, 5), x(3)), s(x(N, 3, 5), x(1)), s(x(N, 3), x(3)), s(x(N, 3, 2, 2), w(3))],
    # arithmetic
    aten.add.Tensor: [s(x(N, 3), x(N, 3)), s(x(N, 3, 5), x(3, 1), alpha=2), s(x(1, 5), x(N, 3, 1)), s(x(N, 3), 2)],
    aten.add.Scalar: [s(x(N, 3), 2.5)],
    aten.sub.Tensor: [s(x(N, 3), x(3)), s(x(N, 3, 1), x(N, 1, 5), alpha=-2), s(x(N, 3), w(N, 3))],
    aten.sub.Scalar: [s(x(N, 3), 2.5, 2)],
    aten.rsub.Tensor: [s(x(N, 3), x(N, 1)), s(x(N, 3), x(3), alpha=2)],
    aten.rsub.Scalar: [s(x(N, 3), 2), s(x(N, 3), 1.0, 3)],
    aten.mul.Tensor: [s(x(N, 3), x(N, 1)), s(x(N, 3, 5, 5), x(N, 3, 1, 1)), s(x(N, 3), 2)],
    aten.mul.Scalar: [s(x(N, 3), -2.5)],
    aten.div.Tensor: [s(x(N, 3), x(N, 3, shift=9)), s(x(N, 3), x(3, shift=-9)), s(x(N, 3), 2)],
    aten.div.Scalar: [s(x(N, 3), 3)],
    aten.neg.default: [s(x(N, 3))],
    # convolutions
    aten.convolution.default: convolutions(),
    # matrix products
    aten.linear.default: [s(x(N, 3), x(5, 3), x(5)), s(x(N, 2, 6, 3), x(5, 3)), s(x(N, 3), w(5, 3), None)],
    aten.addmm.default: [s(x(5), x(N, 3), x(3, 5)), s(x(N, 5), x(N, 3), x(3, 5), beta=2, alpha=-3)],
    aten.mm.default: [s(x(N, 3), x(3, 5))],
    aten.bmm.default: [s(x(N, 3, 5), x(N, 5, 2))],
    # norms
    aten._native_batch_norm_legit_no_training.default: [
        s(x(N, 3), w(3), w(3), w(3), w(3, shift=9), 0.1, 1e-3, used=(0,)),
        s(x(N, 3, 2, 5), None, None, w(3), w(3, shift=9), 0.1, 0.5, used=(0,)),
    ],
    # pools
    aten.max_pool2d_with_indices.default: max_pools(),
    aten.adaptive_max_pool2d.default: [s(x(N, 2, 5, 6), [1, 1], used=(0,))],
    aten.max_pool3d_with_indices.default: [
        s(x(N, 1, 5, 6, 5), [2, 3, 2], [2, 2, 1], [1, 1, 0], used=(0,)),
        s(x(N, 1, 5, 5, 6), [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], True, used=(0,)),
    ],
    aten.avg_pool1d.default: [s(x(N, 2, 9), [3], [2], [1]), s(x(N, 2, 8), [3], [2], [1], True, False)],
    aten.avg_pool2d.default: [
        s(x(N, 2, 8, 9), [2, 2]),
        s(x(N, 2, 9, 9), [2, 2], [2, 2], [0, 0], True, False),
        s(x(N, 2, 9, 8), [3, 3], [1, 2], [1, 1], False, False),
        s(x(N, 2, 8, 8), [3, 3], [2, 2], [1, 1], True, True),
        s(x(N, 2, 8, 8), [3, 2], [2, 2], [1, 1], True, False, 5),
        s(x(N, 2, 8, 6), [2, 3]),
        s(x(2, 8, 8), [3, 3], [1, 1]),
    ],
    aten.avg_pool3d.default: [
        s(x(N, 1, 5, 5, 6), [2, 2, 2]),
        s(x(N, 1, 5, 6, 5), [2, 3, 2], [1, 2, 2], [1, 1, 0], True, False),
    ],
    aten._adaptive_avg_pool2d.default: [
        s(x(N, 2, 8, 9), [3, 5]),
        s(x(N, 2, 5, 3), [8, 6]),
        s(x(N, 2, 6, 6), [1, 6]),
        s(x(2, 6, 6), [1, 3]),
    ],
    aten._adaptive_avg_pool3d.default: [s(x(N, 2, 5, 6, 3), [2, 3, 5])],
    aten.adaptive_avg_pool1d.default: [s(x(N, 2, 9), [5])],
    # reductions
    aten.mean.dim: [s(x(N, 3, 5), [1]), s(x(N, 3, 5), [-1, -2], True), s(x(N, 3, 5), [0, 2])],
    aten.sum.dim_IntList: [s(x(N, 3, 5), [2]), s(x(N, 3, 5), [-2, 0], True), s(x(N, 3), None), s(x(N, 3), [])],
    aten.mean.default: [s(x(N, 3, 5))],
    aten.sum.default: [s(x(N, 3, 5))],
    # resampling
    aten.upsample_nearest2d.vec: [
        s(x(N, 2, 3, 5), None, [2.0, 3.0]),
        s(x(N, 2, 8, 6), [5, 13], None),
        s(x(N, 2, 5, 6), None, [1.7, 0.6]),
        s(x(N, 2, 5, 6), [10, 3], None),
    ],
    aten.upsample_bilinear2d.vec: [
        s(x(N, 2, 3, 5), [8, 9], False, None),
        s(x(N, 2, 5, 3), [13, 2], True, None),
        s(x(N, 2, 5, 6), None, False, [1.7, 0.6]),
        s(x(N, 2, 1, 5), None, True, [2.0, 2.0]),
    ],
    # smooth activations
    aten.silu.default: [s(x(N, 6))],
    aten.mish.default: [s(x(N, 6))],
    # shapes
    aten.view.default: [s(x(N, 3, 5), [N, 15]), s(x(N, 6), [-1, 2, 3])],
    aten.reshape.default: [s(x(N, 3, 5), [N, 5, -1])],
    aten._unsafe_view.default: [s(x(N, 3, 5), [N, 15])],
    aten.unsqueeze.default: [s(x(N, 3), 1), s(x(N, 3), -1)],
    aten.squeeze.default: [s(x(N, 3, 1))],
    aten.squeeze.dim: [s(x(N, 1, 3), 1), s(x(N, 3, 2), -1)],
    aten.squeeze.dims: [s(x(N, 1, 3, 1), [1, -1])],
    aten.flatten.using_ints: [s(x(N, 3, 5), 1)],
    aten.clone.default: [s(x(N, 3))],
    aten.alias.default: [s(x(N, 3))],
    aten.lift_fresh_copy.default: [s(x(N, 3))],
    aten.dropout.default: [s(x(N, 3), 0.5, False)],
    aten._to_copy.default: [s(x(N, 3), dtype=torch.float32), s(x(N, 3), dtype=torch.float64)],
    aten.copy.default: [s(x(N, 3), x(1, 3)), s(w(N, 3), x(N, 3))],
    aten.permute.default: [s(x(N, 3, 5, 6), [0, 3, 1, 2]), s(x(N, 3, 5), [-1, 0, -2])],
    aten.transpose.int: [s(x(N, 3, 5), 1, -1)],
    aten.t.default: [s(x(N, 3))],
    aten.expand.default: [s(x(N, 1, 5), [-1, 3, -1]), s(x(3, 1), [2, 3, 5]), s(x(N, 3), [N, 3])],
    aten.cat.default: [s([x(N, 3), w(N, 2), x(N, 5)], 1), s([x(N, 2, 3), x(N, 2, 1)], -1), s([x(3, 2), x(1, 2)])],
    aten.stack.default: [s([x(N, 3), x(N, 3)], 1), s([x(N, 3), w(N, 3)], -1)],
    aten.split_with_sizes.default: [s(x(N, 6), [1, 2, 3], 1, used=(0, 2)), s(x(N, 6, 2), [2, 2, 2], -2, used=(1,))],
    aten.split.Tensor: [s(x(N, 5), 2, 1, used=(0, 1, 2)), s(x(N, 2, 6), 3, -1, used=(1,))],
    aten.unbind.int: [s(x(N, 3), 1, used=(0, 2)), s(x(N, 2, 3), -1, used=(0, 1, 2))],
    aten.slice.Tensor: [
        s(x(N, 6), 1, 1, -1),
        s(x(N, 6), -1, -3, 9223372036854775807),
        s(x(N, 6), 1, -100, 3),
        s(x(N, 6, 2), 1, 1, 6, 2),
        s(x(N, 8), 1, 0, 8, 3),
        s(x(N, 8), -1, None, None, 2),
        s(x(N, 6), 1, 0, 100),
    ],
    aten.select.int: [s(x(N, 3, 5), 1, 1), s(x(N, 3, 5), -1, -2)],
    aten.unfold.default: [s(x(N, 3, 8), 2, 3, 2), s(x(N, 9, 2), -2, 4, 1), s(x(N, 6), 1, 2, 3)],
    aten.constant_pad_nd.default: [
        s(x(N, 3, 5), [1, 2]),
        s(x(N, 3, 5), [1, -2, 0, 1], 2.5),
        s(x(N, 3, 5), [-1, -1, 2, -1]),
    ],
}
