"""Every rule at the samples of its line: eager against autograd and slow formulas, traced, and under ONNX Runtime.

All rules are traced and exported side by side in one graph.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from surgeon.conversion.gates import GATES, BoundGate
from surgeon.conversion.rules import CONSTANT, DERIVED, PRESERVED_OPS, RULES, rule
from surgeon.conversion.writers.translation import fold, translate
from tests import oracles
from tests.draws import Call
from tests.samples import DIFFERENTIABLE, OPERATORS, Sample, cotangents, outputs, pull, pull_active

aten = torch.ops.aten
TRACED, OTHER = 23, 3  # batches; no other size in the samples is a multiple of the first
TRACED_AT, OTHER_AT = 0.5, 1.7  # temperatures

CASES = [
    pytest.param(operator, sample, id=f"{operator}-{i}")
    for operator, line in OPERATORS.items()
    for i, sample in enumerate(line.samples)
]
KINDS: dict[str, list[OpOverload]] = defaultdict(list)
for known in OPERATORS:
    KINDS[RULES[known].kind].append(known)


def gate(policy: str, temperature: float | Tensor, edges: str = "lower") -> BoundGate:
    return BoundGate(GATES[policy], 1 / torch.as_tensor(temperature, dtype=torch.float64), edges)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return ((found - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def test_every_rule_has_a_line() -> None:
    assert set(OPERATORS) == set(RULES)
    assert all(line.samples for line in OPERATORS.values())


def test_an_operator_is_in_one_list() -> None:
    assert not set(RULES) & DERIVED
    assert not set(RULES) & CONSTANT
    assert not DERIVED & CONSTANT
    # What is kept from decomposition is kept for a rule of some sort; the others would be refused under a strange name.
    assert set(RULES) | DERIVED | CONSTANT | {aten.threshold.default} >= PRESERVED_OPS


def test_a_second_rule_for_an_operator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aten\.relu\.default has a rule already: relu"):
        rule(aten.relu.default)(lambda g, out, x: (g,))


@pytest.mark.parametrize(("operator", "sample"), CASES)
def test_exact_rules_and_hard_gates_are_the_gradient(operator: OpOverload, sample: Sample) -> None:
    call = sample.call(OTHER)
    g = cotangents(operator, call)
    pulled = pull(operator, call, g, gate("hard", 1.0))
    found = outputs(call, DIFFERENTIABLE.get(operator, operator)(*call.args, **call.kwargs))
    expected = torch.autograd.grad(found, [tensor for tensor in call.tensors if tensor.requires_grad], g)
    for mine, gradient in zip(pulled, expected, strict=True):
        assert relative(mine, gradient) < 1e-10


@pytest.mark.parametrize("policy", GATES)
@pytest.mark.parametrize("edges", ["lower", "both"])
@pytest.mark.parametrize("operator", KINDS["gate"], ids=str)
def test_gates_are_the_slow_rule(operator: OpOverload, policy: str, edges: str) -> None:
    for sample in OPERATORS[operator].samples:
        call = sample.call(9)
        g = cotangents(operator, call)
        found = pull(operator, call, g, gate(policy, 0.7, edges))[0]
        z, *options = call.args
        assert relative(found, oracles.activation(operator, policy, z, g[0], 0.7, edges, *options)) < 1e-12


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("operator", KINDS["pool"], ids=str)
def test_soft_pools_are_the_slow_rule(operator: OpOverload, temperature: float) -> None:
    for sample in OPERATORS[operator].samples:
        call = sample.call(2)
        g = cotangents(operator, call)
        (found,) = pull(operator, call, g, gate("soft", temperature))
        # exp(x / T) multiplies the rounding of x by 1 / T.
        bound = 1e-12 * max(1, 0.3 / temperature)
        assert relative(found, oracles.soft_max_pool_of(operator, call.args, g[0], temperature)) < bound


class SideBySide(nn.Module):
    """Rules of operators in one module: (temperature, all tensors and cotangents) -> all that the rules give."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[OpOverload, Sample, str]] = []
        for operator, line in OPERATORS.items():
            kind = RULES[operator].kind
            # Max pools trace into many nodes: their first samples are the ones that differ in form.
            samples = line.samples[: 2 if "pools" in RULES[operator].backward.__module__ else None]
            self.calls += [(operator, sample, "" if kind == "exact" else "soft") for sample in samples]
            # The other policies differ in nothing that a sample's options touch.
            policies = {"exact": (), "pool": ("hard",), "gate": tuple(name for name in GATES if name != "soft")}
            self.calls += [(operator, line.samples[0], policy) for policy in policies[kind]]

    def inputs(self, batch: int, temperature: float) -> list[Tensor]:
        """Arguments of a call of this module, float32."""
        found = [torch.tensor(temperature)]
        for operator, sample, _ in self.calls:
            call = sample.call(batch, torch.float32)
            found += [*(tensor.detach() for tensor in call.tensors), *cotangents(operator, call)]
        return found

    def forward(self, temperature: Tensor, *given: Tensor) -> list[Tensor]:
        values, pulled = iter(given), []
        for operator, sample, policy in self.calls:
            call, active = self._call(sample, values)
            g = [next(values) for _ in sample.used or outputs(call, operator(*call.args, **call.kwargs))]
            bound = BoundGate(GATES[policy], 1 / temperature) if policy else None
            try:
                pulled += pull_active(operator, call, active, g, bound)
            except Exception as error:
                error.add_note(f"the rule of {label(operator, sample, policy)}")
                raise
        return pulled

    @staticmethod
    def _call(sample: Sample, values: Any) -> tuple[Call, list[bool]]:
        tensors = [next(values) for _ in sample.slots]
        return sample.filled(tensors, tensors[0].shape[0]), [slot.active for slot in sample.slots]


def label(operator: OpOverload, sample: Sample, policy: str) -> str:
    return f"{operator} {policy} {sample.args}"


@functools.cache
def exported() -> tuple[SideBySide, ExportedProgram, nn.Module]:
    """The rules, the program that holds them, and a module of it (the export to ONNX uses the program up)."""
    rules = SideBySide()
    arguments = rules.inputs(TRACED, TRACED_AT)
    batch = Dim("batch", min=1)

    def size(length: int) -> Any:
        return Dim.STATIC if length % TRACED else batch if length == TRACED else length // TRACED * batch

    shapes = tuple({axis: size(length) for axis, length in enumerate(value.shape)} for value in arguments[1:])
    with torch.no_grad():
        program = torch.export.export(rules, tuple(arguments), dynamic_shapes=(None, shapes))
    return rules, program, program.module()


def test_traced_rules_hold_for_another_batch_and_temperature() -> None:
    rules, _, traced = exported()
    assert not [node for node in traced.graph.nodes if "autograd" in str(node.target)]
    arguments = rules.inputs(OTHER, OTHER_AT)
    compare(rules, traced(*arguments), rules(*arguments), 1e-5)


def test_exported_rules_agree_under_onnx_runtime(tmp_path: Path) -> None:
    rules, program, _ = exported()
    arguments = rules.inputs(OTHER, OTHER_AT)
    # Without names: a rule that returns its cotangent makes one value input and output, which has one name.
    onnx_ir.save(fold(translate(program, (), None, [], [], 18)), tmp_path / "rules.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "rules.onnx", providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    assert len(names) == len(arguments)
    found = session.run(None, {n: np.ascontiguousarray(v) for n, v in zip(names, arguments, strict=True)})
    compare(rules, [torch.from_numpy(value) for value in found], rules(*arguments), 1e-4)


def compare(rules: SideBySide, found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Raise with the operators and samples whose results differ by more than `tolerance`, relative L2."""
    labels = [label(*call) for call in rules.calls for slot in call[1].slots if slot.active]
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    wrong = {name: error for name, error in zip(labels, errors, strict=True) if not error < tolerance}
    assert not wrong
