"""A gate policy is one class: defined here, it is in the menu, in artifacts and in their verification."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgeon
import surgeon.cli.export
from surgeon.bundle.manifest import GATE_NAMES, Manifest
from surgeon.cli import invoke
from surgeon.conversion import gates
from surgeon.conversion.gates import GATES, GatePolicy
from surgeon.errors import SurgeonError, VerificationError
from surgeon.verify.oracle.reference import reference_pullback

NAME, T = "cold", 0.8
X = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    """Every kind of activation that a policy is composed into."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2),
        nn.Hardtanh(-0.3, 0.3),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(3),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 5)).eval()


@pytest.fixture(scope="module")
def policy() -> Iterator[type[GatePolicy]]:
    """The soft gate at half the temperature, and the command line as it is in a process that has the class."""

    class Cold(GatePolicy):
        """sigmoid(2 z / T) * g."""

        name = NAME
        uses_temperature = True

        def through(self, z: Tensor, cotangent: Tensor, inverse_temperature: Tensor) -> Tensor:
            return (2 * z * inverse_temperature).sigmoid() * cotangent

    importlib.reload(surgeon.cli.export)
    yield Cold
    forget()
    importlib.reload(surgeon.cli.export)


def forget() -> None:
    if GATES.pop(NAME, None) is not None:
        GATE_NAMES.remove(NAME)


@pytest.fixture(scope="module")
def bundle(policy: type[GatePolicy], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported, and so verified, by the command."""
    folder = tmp_path_factory.mktemp("policy") / "cold"
    options = ["--gate", NAME, "--input-shape", "1,6,6", "--formats", "onnx", "-o", str(folder), "--json"]
    assert invoke(["export", f"{__name__}:network", *options]) == 0
    return folder


def test_a_rewritten_network_has_it(policy: type[GatePolicy]) -> None:
    found = {}
    for name, temperature in ((NAME, T), ("soft", T / 2)):
        graph = surgeon.rewrite(network(), X[:2], surgeon.Recipe(gate=name, pool="hard"))
        found[name] = graph(X, torch.eye(5)[:3], torch.tensor(temperature))[1]
    assert torch.allclose(found[NAME], found["soft"], rtol=1e-5, atol=1e-7)


def test_a_bundle_has_it_with_a_temperature(bundle: Path) -> None:
    session = surgeon.load(bundle)
    assert [(gate.rule, gate.soft) for gate in session.manifest.gates] == [(NAME, True)] * 3 + [("hard", False)]
    assert len(session.manifest.verification) > 3
    _, found = session.pullback(X.numpy(), torch.eye(5)[:3].numpy(), temperature=T)
    recipe = surgeon.Recipe(gate="soft", pool="hard")
    _, expected = reference_pullback(network(), X, torch.eye(5)[:3], recipe=recipe, temperature=T / 2)
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def test_verification_sees_a_mistake_in_what_is_composed_of_it(
    policy: type[GatePolicy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates.BoundGate, "upper_edge", True)
    with pytest.raises(VerificationError):
        surgeon.export(
            *(network(), tmp_path / "wrong", surgeon.Recipe(gate=NAME)), input_shape=(1, 6, 6), formats=["onnx"]
        )


def test_one_name_is_one_policy(policy: type[GatePolicy]) -> None:
    with pytest.raises(ValueError, match=r"there is a gate .cold. already: .*Cold"):
        type("Again", (GatePolicy,), {"name": NAME})


def test_where_the_class_is_missing_its_bundles_run_and_nothing_is_made_with_it(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = GATES[NAME]
    forget()
    try:
        with pytest.raises(SurgeonError, match=f"gate cannot be 'cold'. Choose .*{GATE_NAMES[-2]} or {GATE_NAMES[-1]}"):
            surgeon.Recipe(gate=NAME)
        text = (bundle / "manifest.json").read_text()
        assert Manifest.from_json(text).to_json() == text
        assert surgeon.load(bundle).pullback(X.numpy(), torch.eye(5)[:3].numpy())[1].any()
        assert invoke(["verify", str(bundle)]) == 1
        assert "there is no gate 'cold'" in capsys.readouterr().err
    finally:
        GATES[NAME] = kept
        GATE_NAMES.append(NAME)
