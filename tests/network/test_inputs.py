"""Networks of several inputs: one is pulled back to, whichever it is, and the others are given beside it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import surgeon
from surgeon.cli import group
from surgeon.errors import SurgeonError
from surgeon.network.inputs import arrange, with_extra_inputs
from surgeon.verify.oracle.reference import reference_pullback

SHAPE = (3, 12, 12)
OTHERS = {"still": SHAPE, "step": ((), "int64")}


class Denoiser(nn.Module):
    """Two pictures and a time step; `scale` may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.still, self.moving = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.step, self.head = nn.Embedding(4, 6), nn.Linear(6, 5)

    def forward(self, still: Tensor, moving: Tensor, step: Tensor, scale: float = 1.0) -> Tensor:
        x = torch.relu_(self.moving(moving)) + torch.relu(self.still(still))
        x = torch.relu(nn.functional.max_pool2d(x, 2) + scale * self.step(step)[:, :, None, None])
        return self.head(x.mean((2, 3)))


def network() -> nn.Module:
    """What the command line is given as a factory: it says itself what it takes."""
    module = Denoiser().eval()
    module.input_shape, module.extra_inputs = SHAPE, OTHERS
    return module


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    return exported(network, formats=("onnx", "torchscript"), check=True, options={"input": "moving"})


def values(batch: int) -> dict[str, numpy.ndarray]:
    random = numpy.random.default_rng(batch)
    pictures = {name: random.uniform(-1, 1, (batch, *SHAPE)).astype(numpy.float32) for name in ("moving", "still")}
    return {**pictures, "step": random.integers(0, 4, batch)}


def expected(given: dict[str, numpy.ndarray], cotangent: numpy.ndarray, temperature: float) -> tuple[Tensor, Tensor]:
    module, _, _ = arrange(Denoiser().eval(), "moving", OTHERS)
    moving, still, step = (torch.from_numpy(given[name]) for name in ("moving", "still", "step"))
    with with_extra_inputs(module, [still, step]):
        return reference_pullback(
            module, moving, torch.from_numpy(cotangent), recipe=surgeon.Recipe(), temperature=temperature
        )


def test_every_artifact_agrees_with_autograd_and_names_what_it_takes(bundle: Path) -> None:
    manifest = surgeon.load(bundle).manifest
    assert max(line.error for line in manifest.verification) < 1e-5
    taken = {name: [port.name for port in artifact.inputs] for name, artifact in manifest.artifacts.items()}
    assert taken["pullback.onnx"] == ["input", "still", "step", "cotangent", "temperature"]
    assert taken["ascent.ts"][:4] == ["input", "still", "step", "cotangent"]
    assert manifest.model.input == "moving"


@pytest.mark.parametrize(("batch", "temperature"), [(1, 0.3), (4, 1.7)])
def test_the_others_move_the_pullback_as_they_do_in_torch(bundle: Path, batch: int, temperature: float) -> None:
    given, cotangent = values(batch), numpy.eye(5, dtype=numpy.float32)[[2] * batch]
    extra_inputs = {name: given[name] for name in ("still", "step")}
    session = surgeon.load(bundle)
    found = session.pullback(given["moving"], cotangent, temperature, extra_inputs)
    for one, other in zip(found, expected(given, cotangent, temperature), strict=True):
        assert numpy.allclose(one, other, rtol=1e-4, atol=1e-6)
    black = {**extra_inputs, "still": numpy.zeros_like(given["still"])}
    assert not numpy.allclose(
        surgeon.load(bundle).pullback(given["moving"], cotangent, temperature, black).pullback,
        found.pullback,
        atol=1e-4,
    )


def test_ascents_keep_the_others_as_they_are(bundle: Path) -> None:
    given, cotangent = values(2), numpy.eye(5, dtype=numpy.float32)[[2, 0]]
    extra_inputs = {name: given[name] for name in ("still", "step")}
    session = surgeon.load(bundle)
    whole = session.ascent(given["moving"], cotangent, steps=3, extra_inputs=extra_inputs)
    *_, last = session.steps(given["moving"], cotangent, steps=3, extra_inputs=extra_inputs)
    assert numpy.allclose(whole.perturbed, last.perturbed, atol=1e-5)
    assert (whole.score[-1] > whole.score[0]).all()


def test_a_graph_takes_them_behind_the_temperature() -> None:
    module, given = Denoiser().eval(), {name: torch.from_numpy(value) for name, value in values(3).items()}
    example = (torch.rand(2, *SHAPE), torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64))
    graph = surgeon.rewrite(module, example, surgeon.Recipe(gate="hard"))
    still = given["still"].requires_grad_()
    output = module(still, given["moving"], given["step"])
    cotangent = torch.rand(3, 5)
    (gradient,) = torch.autograd.grad(output, still, cotangent)
    found = graph(still.detach(), cotangent, given["moving"], given["step"])
    assert torch.allclose(found[0], output, atol=1e-6)
    assert torch.allclose(found[1], gradient, atol=1e-6)


def test_what_the_output_does_not_depend_on_is_no_input(exported) -> None:
    manifest = surgeon.load(exported(network, check=True, at=("moving",), options={"input": "moving"})).manifest
    assert [port.name for port in manifest.artifacts["pullback.onnx"].inputs] == ["input", "cotangent"]
    assert len(manifest.extra_inputs) == 2  # the network itself still wants them, to be verified again


@pytest.mark.parametrize(
    ("input", "extra_inputs", "told"),
    [
        ("nothing", OTHERS, "takes no 'nothing'"),
        ("moving", {"still": SHAPE}, "nothing is known of step. Give --extra-input step=SHAPE"),
        (None, {"moving": SHAPE, "other": SHAPE}, "takes no 'other'"),
        ("moving", {**OTHERS, "moving": SHAPE}, "both pulled back to"),
        ("moving", {**OTHERS, "step": ((), "float8")}, "cannot be float8"),
        ("moving", {"still": (3, 5, 5), "step": ((), "int64")}, "does not take inputs of"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, input: str | None, extra_inputs: dict[str, object], told: str
) -> None:
    with pytest.raises(SurgeonError, match=told.replace("(", r"\(")):
        surgeon.export(Denoiser(), tmp_path / "b", input=input, input_shape=SHAPE, extra_inputs=extra_inputs)
    assert not list(tmp_path.iterdir())


def test_a_name_of_the_artifacts_own_is_refused() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, cotangent: Tensor) -> Tensor:
            return x * cotangent

    class Foreign(nn.Module):
        def forward(self, x: Tensor, größe: Tensor) -> Tensor:
            return x * größe

    with pytest.raises(SurgeonError, match="artifacts' own"):
        arrange(Named(), None, {"cotangent": (3,)})
    with pytest.raises(SurgeonError, match="the input 'größe' is not in ASCII"):
        arrange(Foreign(), None, {"größe": (3,)})


def test_values_that_do_not_fit_are_named(bundle: Path) -> None:
    session, given = surgeon.load(bundle), values(2)
    cotangent = numpy.eye(5, dtype=numpy.float32)[:2]
    with pytest.raises(SurgeonError, match="needs the input 'still'"):
        session.pullback(given["moving"], cotangent)
    extra_inputs = {name: given[name] for name in ("still", "step")}
    with pytest.raises(SurgeonError, match="the step is for a batch of 1"):
        session.pullback(given["moving"], cotangent, extra_inputs={**extra_inputs, "step": given["step"][:1]})
    with pytest.raises(SurgeonError, match="no use for 'mask'"):
        session.pullback(given["moving"], cotangent, extra_inputs={**extra_inputs, "mask": given["step"]})


def test_the_command_line_takes_photos_numbers_and_arrays(bundle: Path, tmp_path: Path) -> None:
    photo, array = tmp_path / "photo.png", tmp_path / "still.npy"
    Image.new("RGB", (20, 20), "orange").save(photo)
    numpy.save(array, values(1)["still"][0])
    batch, tall = tmp_path / "batch.npy", tmp_path / "tall.npy"
    numpy.save(batch, values(1)["still"])
    numpy.save(tall, values(1)["still"][0, :, :, :3])
    start = ["run", str(bundle), str(photo), "--target", "2", "--steps", "2", "-o", str(tmp_path / "out"), "--json"]
    for still in (array, photo):
        result = CliRunner().invoke(group, [*start, "--extra-input", f"still={still}", "--extra-input", "step=3"])
        assert result.exit_code == 0, result.output
        assert len(json.loads(result.stdout)["photos"][0]["score"]) == 3
    for wrong, told in (
        (["--extra-input", "step=3"], "takes still beside the photo"),
        (["--extra-input", "steps=3"], "takes no 'steps'"),
        (["--extra-input", f"still={array}", "--extra-input", f"step={photo}"], "step is no picture"),
        (["--extra-input", f"still={array}", "--extra-input", "step=3.7"], "step is int64, which 3.7 is not"),
        (["--extra-input", f"still={array}", "--extra-input", "step=nan"], "step is int64, which nan is not"),
        (["--extra-input", f"still={batch}", "--extra-input", "step=3"], "Leave out the batch"),
        (["--extra-input", f"still={tall}", "--extra-input", "step=3"], "Give one sample of that shape"),
    ):
        result = CliRunner().invoke(group, [*start, *wrong])
        assert result.exit_code == 1
        assert told in str(result.exception) + result.output


class Scaled(nn.Module):
    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return x.relu().mean((2, 3)) * step[:, None]


def test_verification_draws_integers_that_are_not_zero(tmp_path: Path) -> None:
    extra_inputs = {"step": ((), "int64")}
    bundle = surgeon.export(Scaled(), tmp_path / "b", input_shape=SHAPE, extra_inputs=extra_inputs, formats=("onnx",))
    assert all(line.passed for line in bundle.manifest.verification)


def test_a_factory_says_itself_what_it_takes() -> None:
    described = ["check", "tests.network.test_inputs:network", "--input", "moving", "--json"]
    result = CliRunner().invoke(group, described)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["convertible"]


def saved(folder: Path, kind: str) -> Path:
    """The network as a file; its ONNX calls an input as no variable could be called."""
    example = (torch.rand(2, *SHAPE), torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64))
    shapes = ({0: torch.export.Dim("N", min=1)},) * 3
    path = folder / f"net.{kind}"
    if kind == "pt2":
        torch.export.save(torch.export.export(Denoiser().eval(), example, dynamic_shapes=shapes), path)
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            *(Denoiser().eval(), example, path),
            **{"input_names": ["still.0", "moving", "step"], "dynamic_shapes": shapes, "verbose": False},
        )
    return path


@pytest.mark.parametrize(("kind", "still"), [("onnx", "still_0"), ("pt2", "still")])
def test_files_of_several_inputs(tmp_path: Path, kind: str, still: str) -> None:
    path = saved(tmp_path, kind)
    surgeon.export(str(path), tmp_path / "bundle", input="moving", formats=("onnx",), check=False)
    given, cotangent = values(3), numpy.eye(5, dtype=numpy.float32)[[1, 2, 3]]
    session = surgeon.load(tmp_path / "bundle")
    assert [port.name for port in session.extra_inputs] == [still, "step"]
    found = session.pullback(given["moving"], cotangent, 0.5, {still: given["still"], "step": given["step"]})
    for one, other in zip(found, expected(given, cotangent, 0.5), strict=True):
        assert numpy.allclose(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(SurgeonError, match=r"no input 'nothing'\. It takes still"):
        surgeon.export(str(path), tmp_path / "other", input="nothing")
    assert CliRunner().invoke(group, ["verify", str(tmp_path / "bundle")]).exit_code == 0
