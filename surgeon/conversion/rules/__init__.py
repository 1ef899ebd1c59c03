"""Pullback rules: for each ATen operator, the cotangents of its arguments, as a pure function on tensors.

A rule is `rule(cotangent, out, *args, **kwargs)`, with the operator's own arguments, and returns one entry per
argument: a tensor, a function without arguments that computes it (called only where the argument leads to the input),
or None. A list argument (concatenation) has a list for its entry. Where the operator has several outputs, `cotangent`
is a tuple, with None for each unused output.

Rules of gates and max pools are bound to a policy and get it as `gate=`. An operator is in exactly one of three lists:
RULES (explicit), DERIVED (autograd gives its exact derivative: `surgeon.conversion.rules.derived`),
CONSTANT (it has no gradient). An operator in none of them is refused: a gate that is not listed would get its ordinary
gradient, plausible and wrong.
"""

from surgeon.conversion.rules import (
    activations,
    arithmetic,
    convolutions,
    derived,
    linear,
    norms,
    pools,
    reductions,
    resampling,
    shapes,
    smooth,
)
from surgeon.conversion.rules.registry import CONSTANT, DERIVED, PRESERVED_OPS, RULES, Rule, rule

__all__ = [
    "CONSTANT",
    "DERIVED",
    "PRESERVED_OPS",
    "RULES",
    "Rule",
    "activations",
    "arithmetic",
    "convolutions",
    "derived",
    "linear",
    "norms",
    "pools",
    "reductions",
    "resampling",
    "rule",
    "shapes",
    "smooth",
]
