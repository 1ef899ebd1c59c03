"""Temperatures of single gates: fixed ones by pattern, and one runtime entry for each; against the oracle, by calls."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import surgeon
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import GateSite, Manifest, Recipe
from surgeon.bundle.temperatures import assign
from surgeon.cli import group
from surgeon.conversion.pullback import PullbackModule
from surgeon.errors import SurgeonError
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import require, verify
from tests import networks
from tests.networks import Functional, Stem, build, example
from tests.onnx_nodes import optimised
from tests.pullbacks import captured

FIXED = (("*", 0.8), ("main.*", 0.2), ("relu_2", 1.5), ("mai?.*", 0.4))


def gates(*modules: str, rule: str = "soft") -> list[GateSite]:
    return [GateSite(f"relu_{i}", name, "aten.relu.default", "gate", rule, ("N", 3)) for i, name in enumerate(modules)]


def test_the_last_pattern_that_matches_counts() -> None:
    sites = gates("stem.2", "main.1", "network.last")
    assert assign((), sites) == [None] * 3
    assert assign((("main.*", 0.2),), sites) == [None, 0.2, None]
    assert assign((("*", 1.0), ("stem.2", 0.2), ("network.last", 3.0)), sites) == [0.2, 1.0, 3.0]
    assert assign((("relu_1", 0.2), ("relu_[12]", 3.0)), sites) == [None, 3.0, 3.0]


@pytest.mark.parametrize(
    ("pattern", "temperature", "said"),
    [
        ("layer9.*", 0.5, r"called 'layer9\.\*'.*Name a module or \(a node\): stem\.2 \(relu_0\), main\.1 \(relu_1\)"),
        ("Main.1", 0.5, "no soft gate"),
        ("main.1", 0.0, "temperature is 0.0"),
        ("main.1", float("nan"), "temperature is nan"),
        ("main.1", 1e-46, "temperature is 1e-46"),  # 0 as a float32
    ],
)
def test_a_pattern_that_does_nothing_is_refused(pattern: str, temperature: float, said: str) -> None:
    with pytest.raises(SurgeonError) as error:
        assign(((pattern, temperature),), gates("stem.2", "main.1"))
    assert re.search(said, f"{error.value.message} {error.value.remedy}")


def test_a_pattern_on_hard_gates_does_nothing() -> None:
    with pytest.raises(SurgeonError, match="no soft gate"):
        assign((("main.1", 1.0),), gates("main.1", rule="hard"))


class Detours(nn.Module):
    """Gates that lead nowhere, one module that is called twice, and modules that functional ReLUs are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.again = self.act
        self.pool = nn.MaxPool2d(2)
        self.bias = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        _ = torch.relu(x - 0.1).sum()
        x = self.pool(self.again(self.second(x)) - 0.2 + torch.relu(self.bias))
        return torch.relu(x - 0.1).mean((2, 3)) + nn.functional.relu6(x).amax((2, 3))


def detours() -> nn.Module:
    torch.manual_seed(3)
    return Detours().double().eval().requires_grad_(False)


def test_each_gate_has_its_own() -> None:
    """Fixed in the graph, and given for each gate."""
    module, x = detours(), torch.randn(3, 3, 9, 8, dtype=torch.float64)
    sites = [("act", 0.3), ("act", 0.9), ("pool", 0.5), ("", 2.0), ("", 0.7)]
    graph = captured(module, x).captured
    nodes = [gate.node for gate in PullbackModule(graph, Recipe()).gates]
    fixed = tuple((node, value) for node, (_, value) in zip(nodes, sites, strict=True))
    given = torch.tensor([value for _, value in sites], dtype=x.dtype)
    v = torch.randn(3, 4, dtype=x.dtype)
    _, shared = reference_pullback(module, x, v, recipe=Recipe(), temperature=0.7)
    for recipe, temperatures in (
        (Recipe(temperatures=fixed), ()),
        (Recipe(temperature_input="per-gate"), (given,)),
    ):
        _, pulled = PullbackModule(graph, recipe)(x, v, *temperatures)
        _, expected = reference_pullback(module, x, v, recipe=recipe, temperature=sites)
        assert (pulled - expected).norm() < 1e-12 * expected.norm()
        assert (shared - expected).norm() > 1e-2 * expected.norm()


def test_the_oracle_refuses_temperatures_of_another_network() -> None:
    module, x, v = build(Stem), example(Stem), torch.ones(3, 5, dtype=torch.float64)
    for wrong in ([("relu", 1.0)], [("pool", 1.0), ("relu", 1.0)]):
        with pytest.raises(SurgeonError, match="soft gate"):
            reference_pullback(module, x, v, recipe=Recipe(), temperature=wrong)
    with pytest.raises(SurgeonError, match="fixes temperatures"):
        reference_pullback(module, x, v, recipe=Recipe(temperatures=(("relu", 1.0),)), temperature=1.0)


RECIPES: dict[str, dict[str, Any]] = {
    "fixed": {"temperatures": FIXED[1:]},
    "all fixed": {"temperatures": FIXED},
    "per gate": {"temperature_input": "per-gate", "temperatures": FIXED[1:]},
}


@pytest.fixture(scope="module", params=list(RECIPES))
def bundle(request: pytest.FixtureRequest, exported) -> Bundle:
    return Bundle.open(exported(networks.blocks, formats=("onnx", "torchscript"), **RECIPES[request.param]))


def test_bundles_are_verified_at_the_temperatures_they_state(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    own = {gate.module: gate.temperature for gate in manifest.gates}
    every = manifest.recipe.temperatures == FIXED
    assert own == {"stem.2": 0.8 if every else None, "main.1": 0.4, "last.0": 1.5, "last.2": 0.8 if every else None}
    ports = {port.name: port for port in manifest.artifacts["ascent.ts"].inputs}
    per_gate = manifest.recipe.temperature_input == "per-gate"
    assert ("temperature" in ports) == (per_gate or not every)
    lines = verify(bundle.path, networks.blocks())
    require(lines)
    if per_gate:
        assert ports["temperature"].shape == (4,)
        assert ports["temperature"].default == manifest.default_temperature == (0.3, 0.4, 1.5, 0.3)
        assert "T per gate" in {line.condition.partition(", ")[2] for line in lines}
    for artifact in ("pullback.onnx", "ascent.onnx"):
        assert optimised(bundle.path / artifact, tmp_path)["ReorderOutput"] in (3, 4, 0)


@pytest.mark.parametrize("place", [1, 2])
def test_verification_sees_a_temperature_at_the_wrong_gate(bundle: Bundle, place: int) -> None:
    gate = bundle.manifest.gates[place]
    changed = list(bundle.manifest.gates)
    changed[place] = dataclasses.replace(gate, temperature=1.2 * (gate.temperature or 0.3))
    artifacts = {name: bundle.manifest.artifacts[name] for name in ("pullback.onnx", "pullback.ts")}
    manifest = dataclasses.replace(bundle.manifest, gates=tuple(changed), artifacts=artifacts)
    lines = verify(bundle.path, networks.blocks(), manifest=manifest)
    for name in artifacts:
        assert not all(line.passed for line in lines if (line.artifact, line.quantity) == (name, "pullback"))


def test_a_session_takes_one_number_or_one_for_each(exported) -> None:
    bundle = Bundle.open(exported(networks.functional, formats=("onnx", "torchscript"), temperature_input="per-gate"))
    module, x = networks.functional().double(), example(Functional)
    v = torch.eye(5, dtype=x.dtype)[:3]
    names = [gate.module for gate in bundle.manifest.gates]
    assert names == ["", "module", ""]
    session, image, cotangent = surgeon.load(bundle.path), x.float().numpy(), v.float().numpy()
    for given, all_of_them in ((0.7, [0.7] * 3), ([0.2, 1.0, 3.0], [0.2, 1.0, 3.0]), (np.full(3, 0.4), [0.4] * 3)):
        sites = list(zip(names, all_of_them, strict=True))
        _, expected = reference_pullback(module, x, v, recipe=Recipe(), temperature=sites)
        found = session.pullback(image, cotangent, given).pullback
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)
        again = torch.jit.load(bundle.path / "pullback.ts")(x.float(), v.float(), torch.tensor(given))[1]
        np.testing.assert_allclose(found, again.numpy(), rtol=1e-3, atol=1e-5)
    steps = list(session.steps(image, cotangent, steps=1, temperature=[0.2, 1.0, 3.0]))
    assert steps[1].perturbed.shape == image.shape
    for wrong, said in (([0.2, 1.0], "2 entries"), ([0.2, 1.0, -3.0], "temperature is -3"), ("hot", "not a number")):
        with pytest.raises(SurgeonError, match=said):
            session.pullback(image, cotangent, wrong)


def test_command(tmp_path: Path, digit_photo: Path, exported) -> None:
    runner, made = CliRunner(), str(tmp_path / "made")
    command = ["export", "tests.digits:digits", "-o", made, "--formats", "onnx", "--json", "--temperature-input"]
    own = ["--temperature", "0.4", "--temperature", "features.2=0.9", "--temperature", "*.1?=2"]
    assert runner.invoke(group, [*command, "per-gate", *own], catch_exceptions=False).exit_code == 0
    told = json.loads(runner.invoke(group, ["inspect", made, "--json"], catch_exceptions=False).stdout)
    ports = {port["name"]: port for port in told["ports"]["ascent.onnx"]["inputs"]}
    assert ports["temperature"]["shape"] == [5]
    assert ports["temperature"]["default"] == pytest.approx([0.9, 0.4, 0.4, 0.4, 2])
    assert "input (0.9)" in runner.invoke(group, ["inspect", made, "--show", "gates"], catch_exceptions=False).stdout
    run = ["run", made, str(digit_photo), "--target", "3", "--json", "-o", str(tmp_path / "pictures")]
    scores = []
    for options in ([], ["--temperature", "0.4"]):
        done = runner.invoke(group, [*run, *options], catch_exceptions=False)
        scores.append(json.loads(done.stdout)["photos"][0]["score"])
    assert scores[0] != scores[1]
    picture = [str(digit_photo), "-o", str(tmp_path / "figure.png"), "--json"]
    figure = ["figure", "grid", made, *picture]
    assert "temperatures of their own" in runner.invoke(group, figure, catch_exceptions=False).stdout
    assert "(T = 0.4)" in runner.invoke(group, [*figure, "--temperature", "0.4"], catch_exceptions=False).stdout
    fixed = exported("tests.digits:digits", temperatures=(("*", 0.4), ("features.2", 0.9)))
    refused = runner.invoke(group, ["figure", "grid", str(fixed), *picture])
    assert isinstance(refused.exception, SurgeonError) and "fixes temperatures" in refused.exception.message


@pytest.mark.parametrize(("given", "code"), [("=0.3", 2), ("a=b", 2), ("a=-1", 2), ("nan", 2), ("no.such=1", 1)])
def test_command_refuses(given: str, code: int, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        group, ["export", "tests.digits:digits", "-o", str(tmp_path / "x"), "--temperature", given]
    )
    assert (2 if result.exit_code == 2 else getattr(result.exception, "exit_code", None)) == code
    assert not (tmp_path / "x").exists()


def test_old_manifests_have_one_temperature(digits_bundle: Path) -> None:
    data = json.loads((digits_bundle / "manifest.json").read_text())
    for name in ("temperatures", "temperature_input"):
        data["recipe"].pop(name, None)
    manifest = Manifest.from_json(json.dumps(data))
    assert manifest.default_temperature == 0.3
    assert manifest.gate_temperatures(0.7) == (0.7,) * 5


def test_hard_pools_keep_their_place(exported) -> None:
    made = Bundle.open(exported(networks.stem, check=True, pool="hard", temperature_input="per-gate"))
    assert [gate.rule for gate in made.manifest.gates] == ["soft", "hard"]
    assert all(line.passed for line in made.manifest.verification)
