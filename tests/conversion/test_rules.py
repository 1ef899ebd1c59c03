"""Every rule three ways from one table: eager against autograd and slow oracles, traced, and under ONNX Runtime."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from surgeon.conversion.gates import GATES, BoundGate
from surgeon.conversion.rules import CONSTANT, DERIVED, PRESERVED_OPS, RULES, rule
from surgeon.conversion.writers.translation import TRANSLATIONS
from tests import oracles
from tests.samples import SAMPLES, Sample, Slot

TRACED, OTHER = 23, 3  # batches; no other size in the samples is a multiple of the first
TRACED_AT, OTHER_AT = 0.5, 1.7  # temperatures

CASES = [
    pytest.param(operator, sample, id=f"{operator}-{i}")
    for operator, samples in SAMPLES.items()
    for i, sample in enumerate(samples)
]
DIFFERENTIABLE = {torch.ops.aten.copy.default: lambda x, source: x.clone().copy_(source)}
"""Other forms of operators that autograd does not know by themselves."""
KINDS: dict[str, list[OpOverload]] = defaultdict(list)
FAMILIES: dict[str, list[tuple[OpOverload, Sample]]] = defaultdict(list)
for known in SAMPLES:
    KINDS[RULES[known].kind].append(known)
    family_name = RULES[known].backward.__module__.rpartition(".")[2]
    # Pools trace into many nodes: their first samples are the ones that differ in form.
    FAMILIES[family_name] += [(known, sample) for sample in SAMPLES[known][: 2 if family_name == "pools" else None]]


def cotangents(operator: OpOverload, sample: Sample, tensors: list[Tensor]) -> list[Tensor]:
    """Random, with both signs, for the outputs in use."""
    outputs = sample.outputs(operator(*sample.arguments(tensors), **sample.kwargs))
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]


def entries(arguments: Any, pulled: Any) -> Iterator[Tensor]:
    """A rule's entries for active slots, in order."""
    for argument, entry in zip(arguments, pulled, strict=False):
        if isinstance(argument, list):
            yield from entries(argument, entry)
        elif isinstance(argument, Slot) and argument.active:
            yield entry() if callable(entry) else entry


def pull(
    operator: OpOverload, sample: Sample, tensors: list[Tensor], g: list[Tensor], gate: BoundGate | None = None
) -> list[Tensor]:
    """What the operator's rule gives for its active arguments."""
    known = RULES[operator]
    out = operator(*sample.arguments(tensors), **sample.kwargs)
    given: Any = g[0]
    if sample.used is not None:
        given = [None] * len(out)
        for i, piece in zip(sample.used, g, strict=True):
            given[i] = piece
    options = {} if known.kind == "exact" else {"ramp": gate}
    pulled = known.backward(given, out, *sample.arguments(tensors), **sample.kwargs, **options)
    return list(entries(sample.args, pulled))


def gate(policy: str, temperature: float | Tensor, edges: str = "lower") -> BoundGate:
    return BoundGate(GATES[policy], 1 / torch.as_tensor(temperature, dtype=torch.float64), edges)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return ((found - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def test_every_rule_has_a_sample() -> None:
    assert set(SAMPLES) == set(RULES)


def test_an_operator_is_in_one_list() -> None:
    assert not set(RULES) & DERIVED
    assert not set(RULES) & CONSTANT
    assert not DERIVED & CONSTANT
    # What is kept from decomposition is kept for a rule of some sort; the others would be refused under a strange name.
    assert set(RULES) | DERIVED | CONSTANT | {torch.ops.aten.threshold.default} >= PRESERVED_OPS


def test_a_second_rule_for_an_operator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aten\.relu\.default has a rule already: relu"):
        rule(torch.ops.aten.relu.default)(lambda g, out, x: (g,))


@pytest.mark.parametrize(("operator", "sample"), CASES)
def test_exact_rules_and_hard_gates_are_the_gradient(operator: OpOverload, sample: Sample) -> None:
    tensors = sample.tensors(OTHER, torch.float64)
    g = cotangents(operator, sample, tensors)
    pulled = pull(operator, sample, tensors, g, gate("hard", 1.0))
    leaves = [t.requires_grad_(slot.active) for t, slot in zip(tensors, sample.slots, strict=True)]
    call = DIFFERENTIABLE.get(operator, operator)
    outputs = sample.outputs(call(*sample.arguments(leaves), **sample.kwargs))
    expected = torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf.requires_grad], g)
    assert len(pulled) == len(expected)
    for found, gradient in zip(pulled, expected, strict=True):
        assert relative(found, gradient) < 1e-10


@pytest.mark.parametrize("policy", GATES)
@pytest.mark.parametrize("edges", ["lower", "both"])
@pytest.mark.parametrize("operator", KINDS["gate"], ids=str)
def test_gates_are_the_slow_rule(operator: OpOverload, policy: str, edges: str) -> None:
    for sample in SAMPLES[operator]:
        tensors = sample.tensors(9, torch.float64)
        g = cotangents(operator, sample, tensors)
        found = pull(operator, sample, tensors, g, gate(policy, 0.7, edges))[0]
        z, *options = sample.arguments(tensors)
        assert relative(found, oracles.activation(operator, policy, z, g[0], 0.7, edges, *options)) < 1e-12


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("operator", KINDS["pool"], ids=str)
def test_soft_pools_are_the_slow_rule(operator: OpOverload, temperature: float) -> None:
    for sample in SAMPLES[operator]:
        tensors = sample.tensors(2, torch.float64)
        g = cotangents(operator, sample, tensors)
        (found,) = pull(operator, sample, tensors, g, gate("soft", temperature))
        whole = operator is torch.ops.aten.adaptive_max_pool2d.default
        kernel, *options = [list(tensors[0].shape[2:])] if whole else sample.args[1:]
        ones = [1] * len(kernel)
        stride, padding, dilation = (*options[:3], *[kernel, [0] * len(kernel), ones][len(options[:3]) :])
        expected = oracles.soft_max_pool(tensors[0], g[0], kernel, stride, padding, dilation, temperature)
        assert relative(found, expected) < 1e-12


class Family(nn.Module):
    """The rules of one file, side by side: (temperature, all tensors and cotangents) -> all that the rules give."""

    def __init__(self, calls: list[tuple[OpOverload, Sample]]) -> None:
        super().__init__()
        exact = [(operator, sample, "") for operator, sample in calls if RULES[operator].kind == "exact"]
        soft = [(operator, sample, "soft") for operator, sample in calls if RULES[operator].kind != "exact"]
        assert len(exact) + len(soft) == len(calls)
        # The other policies differ in nothing that a sample's options touch.
        extra_inputs = [
            (operator, SAMPLES[operator][0], policy)
            for operator in dict.fromkeys(operator for operator, _, _ in soft)
            for policy in (["hard"] if RULES[operator].kind == "pool" else ["hard", "guided", "deconvnet"])
        ]
        self.calls = exact + soft + extra_inputs

    def inputs(self, batch: int, temperature: float) -> list[Tensor]:
        """Arguments of a call of this module, float32."""
        found = [torch.tensor(temperature)]
        for operator, sample, _ in self.calls:
            tensors = sample.tensors(batch, torch.float32)
            found += [*tensors, *cotangents(operator, sample, tensors)]
        return found

    def forward(self, temperature: Tensor, *given: Tensor) -> list[Tensor]:
        values, pulled = iter(given), []
        for operator, sample, policy in self.calls:
            tensors = [next(values) for _ in sample.slots]
            g = [next(values) for _ in sample.used or (0,)]
            bound = BoundGate(GATES[policy], 1 / temperature) if policy else None
            pulled += pull(operator, sample, tensors, g, bound)
        return pulled


@functools.cache
def exported(name: str) -> tuple[Family, ExportedProgram]:
    family = Family(FAMILIES[name])
    arguments = family.inputs(TRACED, TRACED_AT)
    batch = Dim("batch", min=1)

    def size(length: int) -> Any:
        return Dim.STATIC if length % TRACED else batch if length == TRACED else length // TRACED * batch

    shapes = tuple({axis: size(length) for axis, length in enumerate(value.shape)} for value in arguments[1:])
    with torch.no_grad():
        return family, torch.export.export(family, tuple(arguments), dynamic_shapes=(None, shapes))


@pytest.mark.parametrize("name", FAMILIES)
def test_traced_rules_hold_for_another_batch_and_temperature(name: str) -> None:
    family, program = exported(name)
    assert not [node for node in program.graph.nodes if "autograd" in str(node.target)]
    arguments = family.inputs(OTHER, OTHER_AT)
    compare(family, program.module()(*arguments), family(*arguments), 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_exported_rules_agree_under_onnx_runtime(name: str, tmp_path: Path) -> None:
    family, program = exported(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own; not under test
        torch.onnx.export(
            program,
            (),
            tmp_path / "family.onnx",
            dynamo=True,
            opset_version=18,
            custom_translation_table=TRANSLATIONS,  # torch 2.11 has no words for adaptive max pools
            verbose=False,
            external_data=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "family.onnx", providers=["CPUExecutionProvider"])
    arguments = family.inputs(OTHER, OTHER_AT)
    names = [port.name for port in session.get_inputs()]
    assert len(names) == len(arguments)
    found = session.run(None, {n: np.ascontiguousarray(v) for n, v in zip(names, arguments, strict=True)})
    compare(family, [torch.from_numpy(value) for value in found], family(*arguments), 1e-4)


def compare(family: Family, found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Raise with the operators and samples whose results differ by more than `tolerance`, relative L2."""
    labels = [
        f"{operator} {policy} {sample.args}"
        for operator, sample, policy in family.calls
        for slot in sample.slots
        if slot.active
    ]
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    wrong = {label: error for label, error in zip(labels, errors, strict=True) if not error < tolerance}
    assert not wrong
