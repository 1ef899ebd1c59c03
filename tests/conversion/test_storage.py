"""Weights stored as halves and in chunks: against the same files with their weights rounded by numpy."""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from surgeon import cli
from surgeon.errors import SurgeonError

torch = pytest.importorskip("torch")
nn = torch.nn

import surgeon  # noqa: E402

SIDE = 12


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 96, 3), nn.ReLU()]
    wide = [nn.Conv2d(96, 220, 3), nn.ReLU(), nn.Conv2d(220, 110, 1), nn.Conv2d(110, 110, (2, 1)), nn.ReLU()]
    return nn.Sequential(*layers, *wide, nn.Flatten(), nn.Linear(110 * 2, 7))


def export(
    path: Path, *, shard_size: int | None = None, single_file: bool = False, check: bool = False, **choices
) -> Path:
    recipe = surgeon.Recipe(gate_outputs=True, **choices)
    given = {"formats": ("onnx",), "shard_size": shard_size, "single_file": single_file, "check": check}
    return surgeon.export(network(), path, recipe, input_shape=(3, SIDE, SIDE), **given).path


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("bundles") / "plain")


@pytest.fixture(scope="module")
def halves(plain: Path) -> Path:
    return export(plain.with_name("halves"), check=True, weights_dtype="fp16")


@pytest.fixture(scope="module")
def sharded(plain: Path) -> Path:
    return export(plain.with_name("sharded"), shard_size=1)


def feeds(name: str) -> dict[str, numpy.ndarray]:
    draw = numpy.random.default_rng(4)
    image = draw.uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(numpy.float32)
    given = {"input": image, "cotangent": numpy.eye(7, dtype=numpy.float32)[[1, 4]]}
    more = {"ascent_step.onnx": {"origin": image}, "ascent.onnx": {"steps": numpy.array(3)}}
    return given | more.get(name, {})


def answers(source: str | bytes, name: str) -> list[numpy.ndarray]:
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds(name))


def rounded(path: Path) -> bytes:
    """The file with each tensor of weights.bin rounded to float16 and back."""
    model = onnx.load(path, load_external_data=False)
    large = {tensor.name for tensor in initializers(model.graph) if tensor.data_location == TensorProto.EXTERNAL}
    model = onnx.load(path)
    for tensor in initializers(model.graph):
        if tensor.name in large:
            values = numpy_helper.to_array(tensor).astype(numpy.float16).astype(numpy.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


def initializers(graph):
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from initializers(attribute.g)


@pytest.mark.parametrize("name", ["pullback.onnx", "ascent_step.onnx", "ascent.onnx", "gates.onnx"])
def test_halves_are_widened_to_what_they_were_rounded_to(plain: Path, halves: Path, name: str) -> None:
    expected = answers(rounded(plain / name), name)
    for found, value in zip(answers(str(halves / name), name), expected, strict=True):
        numpy.testing.assert_array_equal(found, value)
    exact = answers(str(plain / name), name)
    assert any((one != other).any() for one, other in zip(exact, expected, strict=True))


def test_halves_take_half(plain: Path, halves: Path) -> None:
    small, large = ((folder / "weights.bin").stat().st_size for folder in (halves, plain))
    assert 0.49 < small / large < 0.52


@pytest.mark.parametrize("name", ["pullback.onnx", "ascent.onnx", "gates.onnx"])
def test_chunks_hold_what_one_file_held(plain: Path, sharded: Path, name: str) -> None:
    for one, other in zip(answers(str(plain / name), name), answers(str(sharded / name), name), strict=True):
        numpy.testing.assert_array_equal(one, other)


def test_chunks_are_no_larger_than_asked(sharded: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sharded.glob("*.bin")}
    assert sorted(sizes) == [f"weights-{number}.bin" for number in range(1, len(sizes) + 1)] and len(sizes) > 1
    model = onnx.load(sharded / "pullback.onnx", load_external_data=False)
    largest = max(numpy.prod(tensor.dims) * 4 for tensor in model.graph.initializer)
    assert largest < 10**6 and all(size <= 10**6 for size in sizes.values())
    assert {name for name in surgeon.load(sharded).manifest.files if name.endswith(".bin")} == set(sizes)


def test_both_and_in_a_single_file(plain: Path, halves: Path, tmp_path) -> None:
    expected = answers(str(halves / "ascent.onnx"), "ascent.onnx")
    for bundle in (
        export(tmp_path / "both", weights_dtype="fp16", shard_size=1),
        export(tmp_path / "single", weights_dtype="fp16", single_file=True),
    ):
        found = answers(str(bundle / "ascent.onnx"), "ascent.onnx")
        assert all(numpy.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not list((tmp_path / "single").glob("*.bin"))


def test_it_is_verified_as_what_it_is(halves: Path, capfd) -> None:
    lines = surgeon.load(halves).manifest.verification
    assert all("stored in fp16" in line.condition and line.passed for line in lines)
    assert max(line.error for line in lines if line.quantity == "output") < 2e-3
    assert cli.invoke(["inspect", str(halves)]) == 0
    assert "fp32, weights stored in fp16" in capfd.readouterr().out


def test_opponents_are_held_to_what_it_is(halves: Path, capfd) -> None:
    options = ("--source", f"{__name__}:network", "--against", "forward,eager", "--repeats", "1", "--quiet")
    assert cli.invoke(["bench", str(halves), *options]) == 0, capfd.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    large = network()
    with torch.no_grad():
        large[3].weight[0, 0, 0, 0] = 1e5
    with pytest.raises(SurgeonError, match="too large for float16"):
        surgeon.export(large, tmp_path / "large", surgeon.Recipe(weights_dtype="fp16"), input_shape=(3, SIDE, SIDE))
    with pytest.raises(SurgeonError, match="none in chunks"):
        export(tmp_path / "two", shard_size=1, single_file=True)
    for choice in ({"weights_dtype": "fp16"}, {"scalars": "required"}):
        with pytest.raises(SurgeonError, match="about ONNX files"):
            surgeon.export(
                network(), tmp_path / "ts", surgeon.Recipe(**choice), input_shape=(3, 12, 12), formats=("torchscript",)
            )
    assert not list(tmp_path.iterdir())
