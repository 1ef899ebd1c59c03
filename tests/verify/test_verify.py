"""Verification passes a good bundle, and fails each kind of bad one."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import surgeon
from surgeon.bundle.folder import Bundle, seal
from surgeon.bundle.manifest import Comparison
from surgeon.cli import group
from surgeon.errors import ProviderError, SurgeonError, VerificationError
from surgeon.network.sources import Source, resolve
from surgeon.verify.cases import cases
from surgeon.verify.verify import _CaseResult, relative_error, require, verify
from tests import networks

NETWORK = "tests.networks:stem"


@pytest.fixture(scope="module")
def source() -> Source:
    return resolve(NETWORK)


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    return exported(NETWORK, formats=("onnx", "torchscript"))


@pytest.fixture
def copied(bundle: Path, copied) -> Path:
    return copied(bundle)


def altered(folder: Path, **changes: object) -> Path:
    """The bundle with another manifest, sealed again."""
    manifest = Bundle.open(folder).manifest
    seal(folder, dataclasses.replace(manifest, **changes))
    return folder


def test_a_good_bundle_passes(bundle: Path, source: Source) -> None:
    told: list[Comparison] = []
    lines = verify(bundle, source.module, progress=told.append)
    require(lines)
    assert list(lines) == told
    assert {line.artifact for line in lines} == set(Bundle.open(bundle).manifest.artifacts)
    assert {line.quantity for line in lines} == {"output", "pullback", "perturbed", "score"}
    assert {line.provider for line in lines} == {"CPUExecutionProvider", "torch"}
    assert {line.condition.partition(",")[0] for line in lines} == {"batch 1", "batch 2", "batch 3"}
    assert max(line.error for line in lines) < 1e-5


def test_projection_and_clamp_both_bite_in_what_is_compared(bundle: Path, source: Source) -> None:
    manifest = Bundle.open(bundle).manifest
    for step_size in (0.1, manifest.defaults.step_size):
        defaults = dataclasses.replace(manifest.defaults, step_size=step_size)
        for problem in cases(source.module, dataclasses.replace(manifest, defaults=defaults), 1)[2:]:
            perturbed = problem.solve(source.module, torch.float32)["perturbed"]
            added = (perturbed - problem.feeds.get("origin", problem.feeds["input"])).flatten(1).norm(dim=1)
            assert added.max() <= 1.2 * step_size * 1.001
            if step_size == 0.1:  # which leaves little to clamp
                assert added.min() > 1.1 * step_size
            else:
                assert (perturbed.abs() == 1).any()


def test_other_weights_fail(bundle: Path) -> None:
    other = networks.build(networks.Stem, seed=5).float()
    lines = verify(bundle, other)
    assert not any(line.passed for line in lines if line.quantity == "pullback")
    with pytest.raises(VerificationError, match="of 25 comparisons with autograd failed; the worst: "):
        require(lines)


@pytest.mark.parametrize(
    ("recipe", "wrong"),
    [
        ({"gate": "hard"}, "pullback"),
        ({"pool": "hard"}, "pullback"),
        ({"gate": "guided"}, "pullback"),
        ({"norm": "inf"}, "perturbed"),
        ({"objective": "cross-entropy"}, "score"),
    ],
)
def test_an_artifact_of_another_recipe_fails(copied: Path, source: Source, recipe: dict[str, str], wrong: str) -> None:
    manifest = Bundle.open(copied).manifest
    altered(copied, recipe=dataclasses.replace(manifest.recipe, **recipe))
    lines = verify(copied, source.module, tolerance=1e-2)
    assert not any(line.passed for line in lines if line.quantity == wrong)
    assert all(line.passed for line in lines if line.quantity == "output" and "ascent." not in line.artifact)


def test_another_default_temperature_or_margin_fails(copied: Path, source: Source) -> None:
    manifest = Bundle.open(copied).manifest
    altered(copied, defaults=dataclasses.replace(manifest.defaults, temperature=0.31))
    off = [line for line in verify(copied, source.module) if not line.passed]
    assert {line.condition for line in off} == {"batch 1, T 0.31"}  # where the artifact's own default was left
    assert manifest.image is not None
    altered(copied, defaults=manifest.defaults, image=dataclasses.replace(manifest.image, margin=0.1))
    off = [line for line in verify(copied, source.module) if not line.passed]
    assert {line.quantity for line in off} >= {"perturbed"}


def test_hard_gates_pass(source: Source, exported) -> None:
    lines = verify(exported(networks.stem, formats=("torchscript",), gate="hard", pool="hard"), source.module)
    require(lines)
    assert "T" not in lines[0].condition


class Chaotic(nn.Module):
    """Rounding turns the phase of what it returns by 1e-3 or so, and that of its derivative with it."""

    def __init__(self, turn: Tensor | None = None) -> None:
        super().__init__()
        self.stem, self.turn = networks.stem(), turn

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(3e3 * self.stem(x))
        return y if self.turn is None else y @ self.turn


def test_what_rounding_explains_passes(tmp_path: Path) -> None:
    module = Chaotic().eval()
    bundle = surgeon.export(module, tmp_path / "chaotic", formats=("onnx",), input_shape=networks.Stem.input_shape)
    widened = [line for line in bundle.manifest.verification if line.tolerance not in (1e-4, 1e-3)]
    assert widened
    assert all(1e-4 < line.error <= line.tolerance <= 2e-2 for line in widened)
    module.stem.head.weight.data *= 1 + 1e-5
    assert not all(line.passed for line in verify(bundle.path, module))


def test_rounding_explains_nothing_in_float32_alone(tmp_path: Path) -> None:
    module = Chaotic(torch.eye(networks.stem().head.out_features)).eval()  # no buffer: float32 whatever the network is
    with pytest.raises(VerificationError, match="comparisons with autograd failed"):
        surgeon.export(module, tmp_path / "chaotic", formats=("onnx",), input_shape=networks.Stem.input_shape)


def test_rounding_counts_by_kind() -> None:
    """One gate that flips in autograd says that another may flip in the artifact."""
    ones = {"pullback": torch.ones(4), "output": torch.ones(4), "hard/a": torch.ones(4), "hard/b": torch.ones(4)}

    class Flips:
        feeds: ClassVar = {}

        def solve(self, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
            return ones if dtype is torch.float32 else {**ones, "hard/a": torch.tensor([1.0, 1.0, 1.0, 0.0])}

    found = _CaseResult(Flips(), nn.Identity()).rounding("fp16")
    assert found == {"pullback": 0, "output": 0, "hard": pytest.approx(3**-0.5)}


def test_files_that_do_not_run_are_named(copied: Path, source: Source) -> None:
    (copied / "pullback.onnx").write_bytes(b"nonsense")
    with pytest.raises(VerificationError, match=r"pullback\.onnx does not load"):
        verify(copied, source.module)
    (copied / "pullback.onnx").unlink()
    with pytest.raises(SurgeonError, match=r"pullback\.onnx is missing"):
        verify(copied, source.module)


def test_a_dead_network_proves_nothing(bundle: Path) -> None:
    dead = networks.stem()
    dead.head.weight.zero_()
    with pytest.raises(VerificationError, match="zero everywhere"):
        verify(bundle, dead)


def test_relative_error() -> None:
    one = torch.ones(4)
    assert relative_error(one, one) == 0
    assert relative_error(one * 1.5, one) == pytest.approx(0.5)
    assert relative_error(torch.ones(3), one) == math.inf
    assert relative_error(one * math.nan, one) == math.inf
    assert relative_error(one, torch.zeros(4)) == math.inf


def test_command(copied: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    fine = runner.invoke(group, ["verify", str(copied), "--json"], catch_exceptions=False)
    report = json.loads(fine.stdout)
    assert (fine.exit_code, report["passed"], len(report["verification"])) == (0, True, 25)
    table = runner.invoke(group, ["verify", str(copied)], catch_exceptions=False)
    assert "25 of 25 comparisons" in table.stdout
    other = runner.invoke(group, ["verify", str(copied), "--weights", "random"])
    assert isinstance(other.exception, VerificationError) and other.exception.exit_code == 3
    (copied / "pullback.ts").write_bytes(b"")
    monkeypatch.setattr(Bundle, "check", lambda bundle: None)
    broken = runner.invoke(group, ["verify", str(copied), "--json"])
    assert isinstance(broken.exception, VerificationError) and not json.loads(broken.stdout)["passed"]
    monkeypatch.undo()
    shutil.copy(bundle / "pullback.ts", copied)
    integrity = runner.invoke(group, ["verify", str(copied), "--integrity"], catch_exceptions=False)
    assert "files as exported" in integrity.stdout
    weights = copied / "weights.bin"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    for options in ([], ["--integrity"]):
        damaged = runner.invoke(group, ["verify", str(copied), *options])
        assert isinstance(damaged.exception, SurgeonError)
        assert "weights.bin" in damaged.exception.message


def test_a_device_that_is_not_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    result = CliRunner().invoke(group, ["verify", str(bundle), "--device", "cuda"])
    assert isinstance(result.exception, ProviderError) and result.exception.exit_code == 5


def test_command_without_torch(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "surgeon.network.sources", raising=False)  # imported anew, it fails
    result = CliRunner().invoke(group, ["verify", str(bundle)])
    assert isinstance(result.exception, SurgeonError)
    assert "torch is not installed" in result.exception.message
