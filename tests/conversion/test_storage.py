"""Weights stored as halves and in shards: against the same files with their weights rounded by numpy."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import surgeon
from surgeon import cli
from surgeon.conversion.writers.onnx_writer import WEIGHTS, embed_weights
from surgeon.conversion.writers.storage import store_again
from surgeon.errors import SurgeonError
from surgeon.exporting import export

SIDE = 12
SHAPE = {"input_shape": (3, SIDE, SIDE)}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 96, 3), nn.ReLU()]
    wide = [nn.Conv2d(96, 220, 3), nn.ReLU(), nn.Conv2d(220, 110, 1), nn.Conv2d(110, 110, (2, 1)), nn.ReLU()]
    return nn.Sequential(*layers, *wide, nn.Flatten(), nn.Linear(110 * 2, 7))


@pytest.fixture(scope="module")
def plain(exported) -> Path:
    return exported(network, gate_outputs=True, options=SHAPE)


@pytest.fixture(scope="module")
def verified(exported) -> Path:
    """Of halves, in shards."""
    return exported(network, gate_outputs=True, weights_dtype="fp16", check=True, options=SHAPE | {"shard_size": 1})


def stored(plain: Path, folder: Path, *, halves: bool = False, most: int | None = None) -> Path:
    """A copy of the folder, its weights stored again as export stores them."""
    shutil.copytree(plain, folder)
    store_again(folder, WEIGHTS, halves, most)
    return folder


@pytest.fixture(scope="module")
def halves(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(plain, tmp_path_factory.mktemp("stored") / "halves", halves=True)


@pytest.fixture(scope="module")
def sharded(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(plain, tmp_path_factory.mktemp("stored") / "sharded", most=1)


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
def test_shards_hold_what_one_file_held(plain: Path, sharded: Path, name: str) -> None:
    for one, other in zip(answers(str(plain / name), name), answers(str(sharded / name), name), strict=True):
        numpy.testing.assert_array_equal(one, other)


def test_shards_are_no_larger_than_asked(sharded: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sharded.glob("*.bin")}
    assert sorted(sizes) == [f"weights-{number}.bin" for number in range(1, len(sizes) + 1)] and len(sizes) > 1
    model = onnx.load(sharded / "pullback.onnx", load_external_data=False)
    largest = max(numpy.prod(tensor.dims) * 4 for tensor in model.graph.initializer)
    assert largest < 10**6 and all(size <= 10**6 for size in sizes.values())


def test_both_and_in_a_single_file(halves: Path, verified: Path, tmp_path: Path) -> None:
    expected = answers(str(halves / "ascent.onnx"), "ascent.onnx")
    single = Path(shutil.copytree(halves, tmp_path / "single"))
    embed_weights(single)
    for folder in (verified, single):
        found = answers(str(folder / "ascent.onnx"), "ascent.onnx")
        assert all(numpy.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not list(single.glob("*.bin"))
    assert [name for name in surgeon.load(verified).manifest.files if name.endswith(".bin")] == ["weights-1.bin"]


def test_it_is_verified_as_what_it_is(verified: Path, capfd) -> None:
    lines = surgeon.load(verified).manifest.verification
    assert all("stored in fp16" in line.condition and line.passed for line in lines)
    assert max(line.error for line in lines if line.quantity == "output") < 2e-3
    assert cli.invoke(["inspect", str(verified)]) == 0
    assert "fp32, weights stored in fp16" in capfd.readouterr().out


def test_opponents_are_held_to_what_it_is(verified: Path, capfd) -> None:
    options = ("--source", f"{__name__}:network", "--against", "forward,eager", "--repeats", "1", "--quiet")
    assert cli.invoke(["bench", str(verified), *options]) == 0, capfd.readouterr().err


def test_what_does_not_fit_is_refused(plain: Path, tmp_path: Path) -> None:
    large = Path(shutil.copytree(plain, tmp_path / "large"))
    with (large / WEIGHTS).open("r+b") as file:
        file.write(struct.pack("<f", 1e5))
    with pytest.raises(SurgeonError, match="too large for float16"):
        store_again(large, WEIGHTS, True, None)
    refused = tmp_path / "refused"
    with pytest.raises(SurgeonError, match="none in shards"):
        export(network(), refused / "two", shard_size=1, single_file=True, **SHAPE)
    for choice in ({"weights_dtype": "fp16"}, {"scalars": "required"}):
        with pytest.raises(SurgeonError, match="about ONNX files"):
            export(network(), refused / "ts", surgeon.Recipe(**choice), formats=("torchscript",), **SHAPE)
    assert not refused.exists()
