"""The table of rules, and the lists of operators that need none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """The rule of one operator. `kind` is "exact", "gate" or "pool"; the last two take `gate=`."""

    backward: Callable[..., Any]
    kind: str


RULES: dict[OpOverload, Rule] = {}


def rule(*operators: OpOverload, kind: str = "exact") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function for `operators`; registering one twice raises ValueError."""

    def register(backward: Callable[..., Any]) -> Callable[..., Any]:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"{operator} has a rule already: {RULES[operator].backward.__qualname__}")
            RULES[operator] = Rule(backward, kind)
        return backward

    return register


def _overloads(*names: str) -> set[OpOverload]:
    """Every overload, in-place and out= forms left out, of the ATen operators called `names`."""
    packets = [getattr(aten, name) for name in names]
    overloads = {getattr(packet, overload) for packet in packets for overload in packet.overloads()}
    return {operator for operator in overloads if not operator._schema.is_mutable}


DERIVED: set[OpOverload] = _overloads(
    # pointwise and smooth, or with corners that are not gates
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "atan2", "cos", "cosh", "sin", "sinh", "tan", "tanh"),
    *("elu", "erf", "exp", "expm1", "gelu", "hardsigmoid", "hardswish", "log", "log10", "log1p", "log2", "reciprocal"),
    *("pow", "rsqrt", "sigmoid", "softplus", "sqrt", "where", "maximum", "minimum", "hardshrink"),
    *("exp2", "fmod", "hypot", "remainder"),
    # over a dimension
    *(
        "_softmax",
        "_log_softmax",
        "amax",
        "amin",
        "cumsum",
        "max",
        "min",
        "prod",
        "sort",
        "std",
        "topk",
        "var",
        "var_mean",
    ),
    *("logsumexp", "logcumsumexp", "linalg_vector_norm"),
    # norms that measure their input
    *("native_group_norm", "native_layer_norm", "_native_batch_norm_legit"),
    # indexing
    *("gather", "index", "index_put", "index_select", "masked_fill", "scatter", "scatter_add", "select_scatter"),
    *("grid_sampler_2d", "scatter_reduce"),
    *("slice_scatter", "flip", "roll", "repeat", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
)
"""Operators with their exact derivative, which comes from autograd when a graph needs it."""

CONSTANT: set[OpOverload] = _overloads(
    *(
        "any",
        "all",
        "argmax",
        "argmin",
        "argsort",
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "ceil",
        "eq",
        "floor",
        "ge",
    ),
    *(
        "gt",
        "isfinite",
        "isinf",
        "isnan",
        "le",
        "logical_and",
        "logical_not",
        "logical_or",
        "lt",
        "ne",
        "nonzero",
        "round",
    ),
    *("sign", "trunc", "sym_size", "sym_numel", "sym_stride", "empty_like", "full_like", "ones_like", "rand_like"),
    *("zeros_like", "new_zeros", "new_ones", "new_full", "new_empty", "detach"),
)
"""Operators through which no gradient flows."""

PRESERVED_OPS: set[OpOverload] = {
    aten.detach.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.linalg_vector_norm.default,
    aten.linear.default,
    aten.mish.default,
    aten.prelu.default,
    aten.silu.default,
    aten.threshold.default,
}
"""Operators that the default decompositions would take apart: a gate would lose its name before a rule could see it, a
smooth activation would turn into pieces that look like gates, a matrix product would lose its form, or a detached value
would look attached."""
