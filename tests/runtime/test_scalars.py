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


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture(scope="module", params=["scalar", "per-gate"])
def pair(request, tmp_path_factory) -> tuple[Path, Path]:
    """The same network with defaults and without."""
    folder = tmp_path_factory.mktemp("bundles")
    return tuple(
        surgeon.export(
            network(),
            folder / scalars,
            surgeon.Recipe(scalars=scalars, gate_outputs=True, temperature_input=request.param),
            input_shape=(3, SIDE, SIDE),
            formats=("onnx",),
            check=scalars == "required",
        ).path
        for scalars in ("optional", "required")
    )


def test_the_files_require_them(pair) -> None:
    names = {"pullback": {"temperature"}, "ascent_step": {"temperature", "step_size", "radius"}}
    names |= {"ascent": names["ascent_step"] | {"steps"}, "gates": names["pullback"]}
    for name, scalars in names.items():
        free, bound = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
            for folder in pair
        )
        assert {port.name for port in free.get_overridable_initializers()} == scalars
        assert not bound.get_overridable_initializers()
        assert scalars <= {port.name for port in bound.get_inputs()}


def test_a_session_gives_the_manifests_own(pair) -> None:
    image = numpy.random.default_rng(1).uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(numpy.float32)
    free, bound = map(surgeon.load, pair)
    cotangent = free.one_hot([1, 3])
    for left, right in (
        (free.pullback(image, cotangent), bound.pullback(image, cotangent)),
        (free.pullback(image, cotangent, 0.7), bound.pullback(image, cotangent, 0.7)),
        (free.ascent(image, cotangent, steps=2), bound.ascent(image, cotangent, steps=2)),
        (list(free.steps(image, cotangent))[-1], list(bound.steps(image, cotangent))[-1]),
    ):
        for name in ("output", "pullback"):
            numpy.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    seen = [session.gates(image[:1], cotangent[:1]) for session in (free, bound)]
    assert all((seen[0][name] == seen[1][name]).all() for name in seen[0])


def test_it_is_verified_timed_and_calibrated(pair, capfd) -> None:
    _, bound = pair
    lines = surgeon.load(bound).manifest.verification
    assert lines and all(line.passed for line in lines)
    assert benchmark.benchmark(bound, repeats=1, warm_up=0).rounds[0].timings
    if surgeon.load(bound).manifest.recipe.temperature_input == "scalar":
        assert cli.invoke(["set-temperature", str(bound), "0.9", "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["written"] == 0.9
        assert cli.invoke(["verify", str(bound), "--integrity"]) == 0
        assert surgeon.load(bound).manifest.required_scalars["temperature"] == 0.9
