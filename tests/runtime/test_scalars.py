"""Bundles whose ONNX files have no defaults, for JavaScript: everything else runs them as it runs others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import onnxruntime
import pytest

from surgeon import cli
from surgeon.analysis.bench import benchmark

torch = pytest.importorskip("torch")
nn = torch.nn

import surgeon  # noqa: E402

SIDE = 8
TEMPERATURES = ("scalar", "per-gate")


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 5))
    module.input_shape = (3, SIDE, SIDE)
    return module


@pytest.fixture(scope="module")
def bound(exported) -> dict[str, Path]:
    """Bundles without defaults, by temperature input."""
    return {
        given: exported(network, scalars="required", gate_outputs=True, temperature_input=given, check=True)
        for given in TEMPERATURES
    }


@pytest.fixture(scope="module")
def free(exported) -> Path:
    """The same network with defaults."""
    return exported(network, gate_outputs=True)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_files_require_them(free: Path, bound: dict[str, Path], temperature: str) -> None:
    names = {"pullback": {"temperature"}, "ascent_step": {"temperature", "step_size", "radius"}}
    names |= {"ascent": names["ascent_step"] | {"steps"}, "gates": names["pullback"]}
    for name, scalars in names.items():
        optional, required = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
            for folder in (free, bound[temperature])
        )
        assert {port.name for port in optional.get_overridable_initializers()} == scalars
        assert not required.get_overridable_initializers()
        assert scalars <= {port.name for port in required.get_inputs()}


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_session_gives_the_manifests_own(free: Path, bound: dict[str, Path], temperature: str) -> None:
    """To the bit where the files are the same but for defaults; one temperature for each gate is another graph."""
    image = numpy.random.default_rng(1).uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(numpy.float32)
    sessions = [surgeon.load(folder) for folder in (free, bound[temperature])]
    cotangent = sessions[0].one_hot([1, 3])
    optional, required = (
        [
            session.pullback(image, cotangent),
            session.pullback(image, cotangent, 0.7),
            session.ascent(image, cotangent, steps=2),
            list(session.steps(image, cotangent))[-1],
        ]
        for session in sessions
    )
    rounding = 0.0 if temperature == "scalar" else 1e-5
    for left, right in zip(optional, required, strict=True):
        for name in ("output", "pullback"):
            numpy.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=rounding, atol=rounding)
    seen = [session.gates(image[:1], cotangent[:1]) for session in sessions]
    for name in seen[0]:
        numpy.testing.assert_allclose(seen[0][name], seen[1][name], rtol=rounding, atol=rounding)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_is_verified_and_timed(bound: dict[str, Path], temperature: str) -> None:
    lines = surgeon.load(bound[temperature]).manifest.verification
    assert lines and all(line.passed for line in lines)
    assert benchmark.benchmark(bound[temperature], repeats=1, warm_up=0).rounds[0].timings


def test_it_is_calibrated(bound: dict[str, Path], copied, capfd) -> None:
    bundle = copied(bound["scalar"])
    assert cli.invoke(["set-temperature", str(bundle), "0.9", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["written"] == 0.9
    assert cli.invoke(["verify", str(bundle), "--integrity"]) == 0
    assert surgeon.load(bundle).manifest.required_scalars["temperature"] == 0.9
