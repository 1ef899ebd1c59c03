"""The hand-written graphs of objective and step compute what the torch modules of the ascent compute."""

import itertools
import math

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from surgeon.bundle.choices import choices
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.writers.ascent import AscentStep, Objective
from surgeon.conversion.writers.step_graph import objective_graph, step_graph

SHAPES = [(3, 7), (3, 2, 5), (3, 2, 5, 4), (3, 2, 2, 3, 2)]
RANGES = [(-math.inf, math.inf), (-0.5, 0.75), (0.0, math.inf)]


def free(name, rank):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{i}" for i in range(rank)])


def computed(graph, inputs, outputs, opset):
    """The outputs of `graph` (their ranks by name), whose sizes are all free, as ONNX Runtime computes them."""
    graph.input.extend(free(name, value.dim()) for name, value in inputs.items())
    graph.output.extend(free(name, rank) for name, rank in outputs.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    read = {port.name for port in session.get_inputs()}
    values = session.run([*outputs], {name: value.numpy() for name, value in inputs.items() if name in read})
    return [torch.from_numpy(value) for value in values]


def same(values, expected):
    for value, wanted in zip(values, expected, strict=True):
        assert value.shape == wanted.shape
        assert (value - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("opset", [18, 23])
def test_the_objective(opset):
    generator = torch.Generator().manual_seed(1)
    for kind, shape in itertools.product(choices(Recipe, "objective"), [(3,), *SHAPES]):
        if kind == "cross-entropy" and len(shape) == 1:
            continue  # an output [N] has no classes
        values = {name: torch.randn(shape, generator=generator) for name in ("output", "cotangent")}
        if kind == "energy":
            values.pop("cotangent")
        graph = objective_graph(Recipe(objective=kind), len(shape))
        expected = Objective(kind)(values["output"], values.get("cotangent", values["output"]))
        same(computed(graph, values, {"score": 1, "climbed": len(shape)}, opset), expected)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_the_step(shape, opset):
    generator = torch.Generator().manual_seed(2)
    names = ("input", "origin", "pullback")
    values = {name: torch.randn(shape, generator=generator) for name in names}
    values["pullback"][0] = 0  # a norm that is kept from zero
    scalars = {"step_size": torch.tensor(0.7)}
    for step, norm, limits, radius in itertools.product(
        choices(Recipe, "step"), choices(Recipe, "norm"), RANGES, (1.1, math.inf)
    ):
        inputs = {**values, **scalars, "radius": torch.tensor(radius)}
        expected = AscentStep(step, norm, *limits)(*inputs.values())
        graph = step_graph(Recipe(step=step, norm=norm), limits, len(shape))
        same(computed(graph, inputs, {"perturbed": len(shape)}, opset), [expected])


def test_objective_and_step_stand_in_one_graph():
    """Names of nodes and values differ, and a constant of the same name has the same value."""
    recipe = Recipe(objective="cross-entropy", step="relative")
    graphs = [objective_graph(recipe, 2), step_graph(recipe, (0.0, 1.0), 4)]
    for name in ("name", "output"):
        first, second = ({str(getattr(node, name)) for node in graph.node} for graph in graphs)
        assert first.isdisjoint(second)
    constants = {initializer.name: initializer for initializer in graphs[0].initializer}
    shared = [initializer for initializer in graphs[1].initializer if initializer.name in constants]
    assert shared
    assert all(initializer == constants[initializer.name] for initializer in shared)
