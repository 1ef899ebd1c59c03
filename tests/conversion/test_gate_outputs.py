"""gates.onnx and `surgeon gates`: their numbers against a direct computation in PyTorch, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy
import onnx
import PIL.Image
import pytest
import torch
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo
from rich.console import Console
from torch import Tensor, nn

import surgeon
from surgeon import cli
from surgeon.analysis.evaluate.gate_statistics import GateStatistics, PhotoStatistics, cosine, mean, statistics
from surgeon.analysis.figures import gate_plot
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Image, Recipe
from surgeon.cli.reports.gates_report import facts, table
from surgeon.conversion.probe import GateProbe
from surgeon.conversion.rewriting import rewrite_program
from surgeon.errors import SurgeonError
from surgeon.exporting import export
from surgeon.network.sources import Source, resolve
from surgeon.runtime.session import Session
from surgeon.verify.verify import verify
from tests import networks
from tests.direct_gates import differences, direct
from tests.tiny_bundle import write_tiny

T, NEAR = 0.4, 1.5


class Residual(nn.Module):
    """ReLU, ReLU6 and two max pools, overlapping and not, with a residual sum between them."""

    input_shape = (3, 14, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.last = nn.ReLU()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.last(x + 4 * self.branch(4 * x) - 1)
        return self.head(self.pool(x).mean((2, 3)))


def residual() -> nn.Module:
    return networks.build(Residual).float()


def pictured() -> Source:
    """The residual network, which takes photos of its own size."""
    source = resolve(f"{__name__}:residual", preprocess="none")
    return dataclasses.replace(source, image=Image(height=14, width=12, resize=14))


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    return exported(pictured, gate_outputs=True, check=True)


@pytest.fixture
def photo(tmp_path) -> str:
    path = tmp_path / "photo.png"
    pixels = numpy.random.default_rng(0).integers(0, 256, (14, 12, 3), numpy.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return str(path)


def test_every_number_is_that_of_a_direct_computation(bundle: Path) -> None:
    session = surgeon.load(bundle)
    random = numpy.random.default_rng(1)
    for target in (0, 3):
        image = random.uniform(-1, 1, (1, *Residual.input_shape)).astype(numpy.float32)
        cotangent = session.one_hot(target)
        found = statistics(session.manifest, session.gates(image, cotangent, T), T, NEAR)
        expected = direct(residual(), torch.from_numpy(image), torch.from_numpy(cotangent), T, NEAR)
        assert [gate.kind for gate in found.gates] == ["gate", "pool", "gate", "gate", "pool"]
        assert max(differences(found, expected).values()) < 1e-5
        turned = [gate.cosine for gate in found.gates]
        assert turned[-1] == pytest.approx(1)  # nothing has turned it yet
        assert found.cosine < 0.97 and min(turned[:2]) < 0.97  # and here something has


def test_what_verification_compares(bundle: Path) -> None:
    kinds = {
        line.quantity.partition("/")[0]
        for line in Bundle.open(bundle).manifest.verification
        if line.artifact == "gates.onnx"
    }
    assert kinds == {"output", "pullback", "gradient", "pre_activation", "soft", "hard", "gate_gap"}


def test_a_wrong_file_does_not_verify(bundle: Path, copied) -> None:
    """The oracle would see z under another name, and hard gates that are soft."""
    folder = copied(bundle)
    model = onnx.load(folder / "gates.onnx", load_external_data=False)
    swap = {"hard/hardtanh": "soft/hardtanh", "soft/hardtanh": "hard/hardtanh"}
    for value in model.graph.output:
        value.name = swap.get(value.name, value.name)
    for node in model.graph.node:
        node.output[:] = [swap.get(name, name) for name in node.output]
        node.input[:] = [swap.get(name, name) for name in node.input]
    onnx.save(model, folder / "gates.onnx")
    lines = [line for line in verify(folder, residual()) if line.artifact == "gates.onnx"]
    assert {line.quantity for line in lines if not line.passed} == {"soft/hardtanh", "hard/hardtanh"}


def test_weights_are_stored_once(bundle: Path) -> None:
    """gates.onnx reads what pullback.onnx reads, and that is all there is."""
    pullback, gates = (stored(bundle / name) for name in ("pullback.onnx", "gates.onnx"))
    assert {file for file, _, _ in pullback} == {"weights.bin"} and gates and gates <= pullback
    assert [path.name for path in bundle.glob("*.bin")] == ["weights.bin"]
    assert max(end for _, _, end in pullback) == (bundle / "weights.bin").stat().st_size


def stored(path: Path) -> set[tuple[str, int, int]]:
    """(file, first byte, end) of each tensor that lies outside of the ONNX file."""
    graph = onnx.load(path, load_external_data=False).graph
    infos = [ExternalDataInfo(tensor) for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    return {(info.location, info.offset or 0, (info.offset or 0) + info.length) for info in infos}


def every_kind() -> nn.Module:
    kinds = networks.NETWORKS.values()
    modules = {kind.__name__: networks.build(kind).float() for kind in kinds}
    return networks.Together(modules, [kind.input_shape for kind in kinds])


def test_verified_on_all_kinds_of_gates(exported) -> None:
    bundle = exported(every_kind, gate_outputs=True, temperature_input="per-gate", edges="both", check=True)
    manifest = Bundle.open(bundle).manifest
    operators = (
        "relu",
        "hardtanh",
        "clamp",
        "leaky_relu",
        "prelu",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
    )
    assert {site.op for site in manifest.gates} == {f"aten.{name}.default" for name in operators}
    lines = [line for line in manifest.verification if line.artifact == "gates.onnx"]
    kinds = {line.quantity.partition("/")[0] for line in lines}  # a line for the worst gate of each kind
    assert kinds == {"output", "pullback", "gradient", "pre_activation", "soft", "hard", "gate_gap"}
    assert all(line.passed for line in manifest.verification)


def test_at_zero_a_hard_gate_is_shut() -> None:
    """1[z > 0]: whole maps at z = 0 let nothing through, while a soft gate lets a half."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    nn.init.ones_(network.eval().requires_grad_(False)[0].weight)
    x = torch.tensor([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1).repeat(2, 1, 2, 2)
    program, probe = rewrite_program(network, x, Recipe(gate_outputs=True), kind=GateProbe)
    _, pullback, gradient, before, soft, hard, gap = program.module()(x, torch.ones(2, 2), torch.tensor(0.3))
    assert not before.any() and soft.equal(hard) and float(gap) == 0.5
    assert pullback.all() and not gradient.any()
    assert [sight.shape for sight in probe.gate_outputs] == [("N", 2, 2, 2)]


def test_without_soft_gates_there_is_nothing_to_show(tmp_path) -> None:
    with pytest.raises(SurgeonError, match="no gate is soft"):
        export(residual(), tmp_path / "a", Recipe(gate="hard", gate_outputs=True), input_shape=Residual.input_shape)
    with pytest.raises(SurgeonError, match="are an ONNX file"):
        recipe = Recipe(gate_outputs=True)
        export(residual(), tmp_path / "a", recipe, input_shape=Residual.input_shape, formats=("torchscript",))


def test_cosine_and_means() -> None:
    a, b = numpy.array([1.0, 0.0]), numpy.array([1.0, 1.0])
    assert cosine(a, b) == pytest.approx(0.5**0.5)
    assert cosine(a * 1e-200, b * 1e-200) == pytest.approx(0.5**0.5)
    assert numpy.isnan(cosine(a, 0 * b))
    gate = GateStatistics("relu", "", "gate", 0.3, (1.0, 2.0), 0.1, 0.2, 0.3, float("nan"))
    other = GateStatistics("relu", "", "gate", 0.3, (3.0, 4.0), 0.3, 0.4, 0.5, 0.8)
    both = mean([PhotoStatistics((gate,), 0.5), PhotoStatistics((other,), 0.7)])
    assert both.gates[0].quantiles == (2.0, 3.0) and both.gates[0].near == pytest.approx(0.2)
    assert both.gates[0].cosine == 0.8 and both.cosine == pytest.approx(0.6)
    assert facts(PhotoStatistics((), float("nan")))["cosine"] is None


def test_the_command_prints_and_plots(bundle: Path, photo: str, tmp_path, capfd) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "new" / "gates.svg"
    arguments = [str(bundle), photo, "--target", "2", "--temperature", str(T), "--near", str(NEAR)]
    assert cli.invoke(["gates", *arguments, "--plot", str(plot), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert [gate["kind"] for gate in report["gates"]] == ["gate", "pool", "gate", "gate", "pool"]
    assert report["photos"][0]["target"] == "2" and report["gates"][0]["quantiles"].keys() >= {"0.05", "0.5"}
    assert plot.read_text().startswith("<?xml") and not list(plot.parent.glob(".*"))
    assert cli.invoke(["gates", *arguments]) == 0
    told = capfd.readouterr().out
    assert "branch.2" in told and "pool (max pool)" in told and "|z/T| < 1.5" in told


def test_interruption_keeps_what_is_done(bundle: Path, photo: str, capfd, monkeypatch) -> None:
    real, calls = Session.gates, []

    def stopped(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Session, "gates", stopped)
    assert cli.invoke(["gates", str(bundle), *[photo] * 4, "--target", "2", "--json"]) == 130
    out, err = capfd.readouterr()
    assert "interrupted after 2 of 4 photos" in err and len(json.loads(out)["photos"]) == 2


def test_the_command_refuses_in_one_line(bundle: Path, photo: str, tmp_path, capfd, monkeypatch) -> None:
    def refused(*arguments: object) -> str:
        assert cli.invoke(["gates", *map(str, arguments)]) == 1
        return capfd.readouterr().err

    assert "surgeon export tests.tiny:net --gate-outputs" in refused(write_tiny(tmp_path / "tiny"), photo)
    assert "no ending" in refused(bundle, photo, "--plot", tmp_path / "gates.bmp")
    assert "there is no class 9" in refused(bundle, photo, "--target", "9")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'surgeon[plot]'" in refused(bundle, photo, "--plot", tmp_path / "gates.png")
    with pytest.raises(SurgeonError, match="every activation of it is kept"):
        session = surgeon.load(bundle)
        session.gates(numpy.zeros((2, *Residual.input_shape), numpy.float32), session.one_hot([0, 1]))


def _seen(kind: str, name: str) -> GateStatistics:
    numbers = ((-2.0, -1.0, 0.0, 1.0, 2e30), 0.1, 0.2, 0.3) if kind == "gate" else (None,) * 4
    return GateStatistics(name, name, kind, 0.3, *numbers, 0.5)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_keeps_names_and_angles_in_narrow_terminals(width: int) -> None:
    found = PhotoStatistics((_seen("gate", "blocks.10.relu"), _seen("pool", "stem.pool")), 0.7)
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    console.print(table(found))
    told = console.file.getvalue()
    assert "blocks.10.relu" in told and "stem.pool (max pool)" in told
    assert "z/T 5 %" in told and "cosine" in told and "0.700" in told and "…" not in told
    assert ("2.0e+30" in told) == (width > 60)


def test_pools_alone_are_plotted_without_a_warning(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    gate_plot.draw(tmp_path / "pools.svg", PhotoStatistics((_seen("pool", "pool"),), 0.7), "pools", NEAR)
    assert "0.25" not in (tmp_path / "pools.svg").read_text()  # there is no quarter of a gate
