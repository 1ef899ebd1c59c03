"""Whole networks, end to end, against autograd: what `make zoo` runs. Prints the figures that it finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import surgeon
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.writers.translation import export_plain
from surgeon.exporting import export
from surgeon.network.sources import Source, resolve
from surgeon.network.weights import varied_input
from surgeon.verify.oracle.reference import reference_ascent, reference_pullback
from surgeon.verify.verify import relative_error

pytestmark = pytest.mark.slow

NETWORKS = ("resnet50", "vgg11_bn", "densenet121", "efficientnet_lite0")
SOFT, HARD = Recipe(), Recipe(gate="hard", pool="hard")


@pytest.fixture(scope="module", params=NETWORKS)
def source(request: pytest.FixtureRequest) -> Source:
    """Real weights where they come from a package, calibrated random ones elsewhere."""
    return resolve(request.param, weights=None if request.param == "efficientnet_lite0" else "random")


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / source.model.name
    export(source, folder, SOFT)
    return folder


def images(source: Source, batch: int, seed: int) -> torch.Tensor:
    return varied_input(batch, source.input_shape, torch.Generator().manual_seed(seed), -1.0, 1.0)


def cotangents(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 1000, generator=torch.Generator().manual_seed(seed))


def show(source: Source, what: str, figure: object) -> None:
    print(f"{source.model.name}: {what}: {figure}")


def test_soft_pullback_at_four_temperatures_and_three_batches(source: Source, bundle: Path) -> None:
    session = surgeon.load(bundle)
    for temperature in (0.1, 0.3, 1.0, 3.0):
        worst = 0.0
        for batch in (1, 2, 5):
            x, v = images(source, batch, batch), cotangents(batch, batch)
            output, expected = reference_pullback(source.module, x, v, recipe=SOFT, temperature=temperature)
            found = session.pullback(x.numpy(), v.numpy(), temperature)
            assert relative_error(torch.from_numpy(found.output), output) < 1e-5
            worst = max(worst, relative_error(torch.from_numpy(found.pullback), expected))
        show(source, f"soft pullback, T {temperature}, batch 1, 2, 5", f"{worst:.1e}")
        # Depth multiplies rounding by 1/T at each gate, in the oracle's float32 as in ours.
        assert worst < (1e-5 if temperature > 0.1 else 1e-4)


def test_autograd_rounds_too(source: Source) -> None:
    x, v = images(source, 2, 2), cotangents(2, 2)
    _, single = reference_pullback(source.module, x, v, recipe=SOFT, temperature=0.1)
    module = source.module.double()
    try:
        _, exact = reference_pullback(module, x.double(), v.double(), recipe=SOFT, temperature=0.1)
    finally:
        module.float()
    error = relative_error(single.double(), exact)
    show(source, "soft pullback, T 0.1, float32 autograd against float64", f"{error:.1e}")
    assert error < 1e-4


def test_hard_pullback_is_the_gradient(source: Source, tmp_path: Path) -> None:
    def gradient(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(source.module(x), x, v)[0]

    x, v = images(source, 2, 7), cotangents(2, 7)
    single = gradient(x, v).double()
    module = source.module.double()
    try:
        graph = surgeon.rewrite(module, images(source, 2, 0).double(), HARD)
        with torch.no_grad():
            _, found = graph(x.double(), v.double())
        expected = gradient(x.double(), v.double())
    finally:
        module.float()
    exact = relative_error(found, expected)
    show(source, "hard pullback, float64, through surgeon.rewrite", f"{exact:.1e}")
    assert exact < 1e-10
    export(source, tmp_path / "hard", HARD, formats=("onnx",), check=False)
    artifact = torch.from_numpy(surgeon.load(tmp_path / "hard").pullback(x.numpy(), v.numpy()).pullback)
    ours, theirs = relative_error(artifact.double(), expected), relative_error(single, expected)
    show(source, "hard pullback, float32 artifact (and float32 autograd itself)", f"{ours:.1e} ({theirs:.1e})")
    # Where pre-activations near zero flip their gates on rounding, float32 autograd is as far from float64 as we are.
    assert ours < max(1e-3, 5 * theirs)


def test_ten_steps_of_ascent(source: Source, bundle: Path) -> None:
    x = images(source, 2, 3)
    target = torch.eye(1000)[[3, 977]]
    options = {"temperature": source.temperature, "step_size": 20.0, "radius": 100.0}
    expected = reference_ascent(
        source.module, x, target, recipe=SOFT, range=(-1.0, 1.0), margin=0.0, steps=10, **options
    )
    found = surgeon.load(bundle).ascent(x.numpy(), target.numpy(), steps=10, **options)
    added = relative_error(torch.from_numpy(found.perturbed) - x, expected[0] - x)
    show(source, "10-step ascent, what was added", f"{added:.1e}")
    assert added < 1e-3
    assert relative_error(torch.from_numpy(found.score), expected[3]) < 1e-3


def test_output_and_bytes_are_the_plain_exports(source: Source, bundle: Path, tmp_path: Path) -> None:
    export_plain(source.module, torch.zeros(2, *source.input_shape), tmp_path / "plain.onnx")
    options = onnxruntime.SessionOptions()
    plain = onnxruntime.InferenceSession(tmp_path / "plain.onnx", options, providers=["CPUExecutionProvider"])
    x = images(source, 2, 5).numpy()
    (expected,) = plain.run(None, {"input": x})
    found = surgeon.load(bundle).pullback(x, np.zeros_like(expected)).output
    error = relative_error(torch.from_numpy(found), torch.from_numpy(expected))
    show(source, "output against the plain export's", f"{error:.1e}")
    assert error < 1e-5
    bytes_ours = sum(path.stat().st_size for path in bundle.iterdir() if path.suffix not in (".ts",))
    ratio = bytes_ours / sum(path.stat().st_size for path in tmp_path.glob("plain.*"))
    show(source, "bytes, without TorchScript, over the plain export's", f"{ratio:.3f}")
    assert ratio < 1.1


def test_half_precision_stays_near(source: Source, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SOFT, precision="fp16")
    export(source, tmp_path / "half", recipe, formats=("onnx",), check=False)
    session = surgeon.load(tmp_path / "half")
    x, v = images(source, 1, 9), cotangents(1, 9)
    for temperature in (0.3, 3.0):
        _, expected = reference_pullback(source.module, x, v, recipe=recipe, temperature=temperature)
        found = torch.from_numpy(session.pullback(x.numpy(), v.numpy(), temperature).pullback)
        error = relative_error(found, expected)
        show(source, f"fp16 pullback, T {temperature}", f"{error:.1e}")
        assert error < 5e-2
