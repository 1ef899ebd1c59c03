"""Objective and step of an ascent as ONNX nodes: the same arithmetic, in the same order, as the modules in `ascent`.

Only the ranks of output and input matter, so batch, height and width may be free. A test compares every combination of
objective, step, norm and rank with the modules.
"""

from __future__ import annotations

from typing import Any

import numpy
from onnx import GraphProto, NodeProto, helper, numpy_helper

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.writers.ascent import FLOOR

_PREFIX = "climb/"  # before every name inside, so that none meets a name of the network
ROLE = "surgeon.role"


def mark_step(nodes: list[NodeProto]) -> None:
    """Say of `nodes`, in their metadata, that they belong to the ascent's step."""
    for node in nodes:
        del node.metadata_props[:]
        node.metadata_props.add(key=ROLE, value="step")


class _Nodes:
    """Nodes in order, and the constants that they read. A call adds a node and returns the name of its result."""

    def __init__(self, part: str) -> None:
        self._part = part  # in the names of nodes: objective and step stand in one graph
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Any] = {}

    def __call__(self, operator: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        name = f"{_PREFIX}{self._part}/{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [result or name], name=name, **attributes))
        return result or name

    def number(self, value: float) -> str:
        """The float32 constant `value`."""
        return self._constant(f"number/{value}", numpy.array(value, numpy.float32))

    def sizes(self, *values: int) -> str:
        """The int64 constant of these `values`."""
        return self._constant(f"sizes/{'x'.join(map(str, values))}", numpy.array(values, numpy.int64))

    def graph(self) -> GraphProto:
        """All that was added."""
        mark_step(self._nodes)
        constants = [numpy_helper.from_array(value, constant) for constant, value in self._constants.items()]
        return helper.make_graph(self._nodes, self._part, [], [], constants)

    def _constant(self, name: str, value: Any) -> str:
        self._constants[_PREFIX + name] = value
        return _PREFIX + name


def objective_graph(recipe: Recipe, rank: int) -> GraphProto:
    """Output and cotangent, of `rank` dimensions -> score [N] and climbed, the score's cotangent at the output."""
    add = _Nodes("objective")
    if recipe.objective == "logit":
        _sum_samples(add, add("Mul", "cotangent", "output"), rank, "score")
        add("Identity", "cotangent", result="climbed")
    elif recipe.objective == "energy":
        total = _sum_samples(add, add("Mul", "output", "output"), rank)
        add("Mul", total, add.number(0.5), result="score")
        add("Identity", "output", result="climbed")
    else:
        logarithms = add("LogSoftmax", "output", axis=1)
        _sum_samples(add, add("Mul", "cotangent", logarithms), rank, "score")
        target = add("ReduceSum", "cotangent", add.sizes(1), keepdims=1)
        expected = add("Mul", add("Softmax", "output", axis=1), target)
        add("Sub", "cotangent", expected, result="climbed")
    return add.graph()


def step_graph(recipe: Recipe, value_range: tuple[float, float], rank: int) -> GraphProto:
    """Input, origin and pullback, of `rank` dimensions, step_size [] and radius [] -> perturbed."""
    add = _Nodes("step")
    direction = "pullback"
    if recipe.step != "raw":
        direction = add("Div", direction, _divisor(add, direction, recipe.norm, rank))
    if recipe.step == "relative":
        direction = add("Mul", direction, _norm(add, "input", recipe.norm, rank))
    moved = add("Add", "input", add("Mul", "step_size", direction))
    offset = add("Sub", moved, "origin")
    shrink = add("Div", "radius", _divisor(add, offset, recipe.norm, rank))
    shrink = add("Clip", shrink, "", add.number(1.0))
    placed = add("Add", "origin", add("Mul", offset, shrink))
    low, high = value_range
    add("Clip", placed, add.number(low), add.number(high), result="perturbed")
    return add.graph()


def _sum_samples(add: _Nodes, value: str, rank: int, result: str = "") -> str:
    """The sum over each sample, [N]; a value [N] is already one number for each."""
    if rank == 1:
        return add("Identity", value, result=result) if result else value
    return add("ReduceSum", _flat(add, value, rank), add.sizes(1), keepdims=0, result=result)


def _norm(add: _Nodes, value: str, norm: str, rank: int) -> str:
    """The norm of each sample, [N, 1, …] of `rank` dimensions."""
    flat, axis = _flat(add, value, rank), add.sizes(1)
    if norm == "2":
        length = add("Sqrt", add("ReduceSum", add("Mul", flat, flat), axis, keepdims=0))
    else:
        length = add("ReduceSum" if norm == "1" else "ReduceMax", add("Abs", flat), axis, keepdims=0)
    return add("Reshape", length, add.sizes(-1, *[1] * (rank - 1)))


def _divisor(add: _Nodes, value: str, norm: str, rank: int) -> str:
    """The norm of each sample, kept from zero."""
    return add("Clip", _norm(add, value, norm, rank), add.number(FLOOR))


def _flat(add: _Nodes, value: str, rank: int) -> str:
    """Each sample as one row, [N, …]."""
    return value if rank == 2 else add("Flatten", value, axis=1)
