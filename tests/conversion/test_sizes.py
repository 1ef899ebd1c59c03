"""One artifact for any height and width: at sizes that were not traced, against the oracle; and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon import cli
from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import capture
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import rewrite
from surgeon.conversion.writers import torchscript_writer
from surgeon.errors import ConversionError, SurgeonError
from surgeon.verify.oracle.reference import reference_pullback

SIZES = ((31, 40), (32, 32), (45, 38))
SHAPE = {"input_shape": (3, 32, 40)}
ANY = Recipe(dynamic_size=True)
T = 0.4


class Small(nn.Module):
    input_shape = (3, 32, 40)


class ResNetLike(Small):
    """Strided convolutions, an overlapping max pool, a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1)
        self.main, self.side = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 2)
        self.last, self.head = nn.Conv2d(8, 16, 3, 1, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        x = self.last((self.main(x) + self.side(x)).relu()).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNetLike(Small):
    """Down and up again, padded where the size was odd; the output is a map."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        up = self.up(self.coarse(F.max_pool2d(fine, 2)).relu())
        up = F.pad(up, [0, fine.shape[3] - up.shape[3], 0, fine.shape[2] - up.shape[2]])
        return self.last(torch.cat([fine, up], 1))


class Pools(Small):
    """Ceil mode, averages, crops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(40, 5)
        self.pools = nn.ModuleList([
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.AvgPool2d(2, 2),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        maps = [x[:, :, 1:-1, ::2], *(pool(x).relu() for pool in self.pools)]
        return self.head(torch.cat([each.mean((2, 3)) for each in maps], 1))


class Pyramid(Small):
    """Averages over grids of cells that no size divides, brought back to the size of a skip connection, and further."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.cells, self.last = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2)), nn.Conv2d(24, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        coarse = self.coarse(fine).relu()
        levels = [
            cells(F.adaptive_avg_pool2d(coarse, count)) for cells, count in zip(self.cells, (1, (3, 5)), strict=True)
        ]
        back = [F.interpolate(level.relu(), size=coarse.shape[2:], mode="bilinear") for level in levels]
        up = F.interpolate(torch.cat([coarse, *back], 1), size=fine.shape[2:], mode="nearest")
        return self.last(torch.cat([fine, up], 1))


class Cropped(Small):
    """Up again by a transposed convolution, and cropped where that is too much; a row of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        up = self.up(self.coarse(fine).relu())[:, :, : fine.shape[2], : fine.shape[3]]
        return self.head((fine * up).mean((2, 3)))


class Halved(Small):
    """Sizes and places by quotients of negative numbers, which Python rounds down: padding as TensorFlow has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        h, w = y.shape[2:]
        high, wide = (-(-h // 2) - 1) * 2 + 3 - h, (-w) % 3
        padded = F.avg_pool2d(F.pad(y, [wide // 2, wide - wide // 2, high // 2, high - high // 2]), 3, (2, 3))
        shrunk = F.interpolate(y, size=(-(-h // 2), -(-w // 3)), mode="bilinear")
        cropped = y[:, :, : -(-h // 2)] * ((5 - h) // 2)
        return self.head((padded + shrunk).relu().mean((2, 3)) + cropped.relu().mean((2, 3)))


class Reckoned(Small):
    """Numbers that are computed from sizes, and measured statistics, which divide by them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        h, w = y.shape[2:]
        y = y * max(h, w) / (h**0.5 * min(h, w)) + abs(h - 33) * y / torch.sym_sum([h, w, h])
        y = F.interpolate(y / y.std((2, 3), keepdim=True), scale_factor=0.5, mode="bicubic")
        high = max((-(-h // 2) - 1) * 2 + 3 - h, 0)
        padded = F.pad(y, [1, 1, high, 1]).mean((2, 3))
        y = F.interpolate(y, size=(math.ceil(h / 3), math.floor(w / 2)), mode="bilinear")
        return self.head(y.relu().mean((2, 3)).reshape(len(x), int(y.shape[1])) + padded)


class Attended(Small):
    """Maxima and means over the whole map, by all their names, as channel attention takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        pooled = F.avg_pool2d(y, y.size()[2:]) + F.max_pool2d(y, (y.size(2), y.size(3)), stride=(y.size(2), y.size(3)))
        y = y * torch.sigmoid(self.inner(pooled.relu()))
        return self.head(F.adaptive_max_pool2d(y, 1).flatten(1))


class Restored(Small):
    """Down, and up again by transposed convolutions to the very size from before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, (2, 3), 1), nn.Linear(8, 5)
        self.up = nn.ConvTranspose2d(8, 8, 3, (2, 3), 1, groups=2)
        self.plain = nn.ConvTranspose2d(8, 8, 4, (2, 3), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        z = self.down(y).relu()
        up = self.up(z, output_size=y.shape[2:])
        plain = self.plain(z, output_size=[y.shape[2] + 3, y.shape[3] + 3])[:, :, 3:, 3:]
        return self.head((y + up + plain).relu().mean((2, 3)))


class Longest(Small):
    """Times its longest side."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean((2, 3)) * max(x.shape[2], x.shape[3])


class Parity(Small):
    """Does something else where the height is odd."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean((2, 3)) * (1 if x.shape[2] % 2 else 2)


class Counted(Small):
    """As Parity; and the batch is taken for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean((2, 3)).reshape(len(x), -1) * (1 if int(x.shape[2]) % 2 else 2)


class Large(Small):
    """Does something else where the picture is large."""

    def forward(self, x: Tensor) -> Tensor:
        return (x if x.shape[2] < 60 else x[:, :, ::2, ::2] * 3).relu().mean((2, 3))


class Multiples(Small):
    """Does something else where height and width are both multiples of 64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean((2, 3)) * (2 if x.shape[3] % 64 == 0 and x.shape[2] % 64 == 0 else 1)


class Tall(Small):
    """Does something else where the picture is very large."""

    def forward(self, x: Tensor) -> Tensor:
        return (x if x.shape[2] < 600 else x * 3).relu().mean((2, 3))


class Low(Small):
    """Does something else where the picture is small."""

    def forward(self, x: Tensor) -> Tensor:
        return (x if x.shape[2] >= 20 else x * 3).relu().mean((2, 3))


class Kernel(Small):
    """Takes half the height for a kernel's, which is a fixed number."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.relu(), x.shape[2] // 2).mean((2, 3))


class Steps(Small):
    """Takes the height for a count of steps."""

    input_shape = (3, 9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return sum((row.relu() for row in x.unbind(2)), torch.zeros(())).mean(2)


class Flat(Small):
    """Takes one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.relu().flatten(1))


class Cells(Small):
    """The largest of each cell; cells have another size at every size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x.relu(), 4).flatten(1)


class Enlarged(Small):
    """Back to a size that is neither the input's nor known before its first layer, and is the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return F.interpolate(F.max_pool2d(y, 2), y.shape[2:])


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


# ResNetLike's graph is in the artifacts below.
@pytest.mark.parametrize("kind", [UNetLike, Pools, Pyramid, Cropped, Enlarged])
def test_one_graph_is_right_at_every_size(kind: type[Small]) -> None:
    module = made(kind).double()
    graph = rewrite(module, torch.randn(2, *kind.input_shape, dtype=torch.float64), ANY)
    for size in (*SIZES, (64, 33), (17, 23)):
        x = torch.randn(3, 3, *size, dtype=torch.float64)
        v = torch.randn_like(module(x))
        output, expected = reference_pullback(module, x, v, recipe=ANY, temperature=T)
        found, pulled = graph(x, v, torch.tensor(T, dtype=torch.float64))
        assert torch.allclose(found, output, rtol=1e-10)
        assert (pulled - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", [ResNetLike, *(pytest.param(k, marks=pytest.mark.slow) for k in (UNetLike, Pyramid))])
def test_one_artifact_is_right_at_every_size(kind: type[Small], tmp_path: Path) -> None:
    bundle = surgeon.export(made(kind), tmp_path / "any", ANY)
    manifest, module = bundle.manifest, made(kind).double()
    assert manifest.artifacts["ascent.ts"].inputs[0].shape == ("N", 3, "H", "W")
    assert {"batch 1, 32x40, T 0.3", "batch 3, 33x43, T 0.69"} <= {line.condition for line in manifest.verification}
    graph = onnx.load(bundle.path / "pullback.onnx", load_external_data=False).graph
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == ["N", 3, "H", "W"]
    assert "H" in str(manifest.gates[0].shape)
    session = surgeon.load(bundle.path)
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        v = torch.randn_like(module(x.double())).float()
        output, expected = reference_pullback(module, x.double(), v.double(), recipe=ANY, temperature=T)
        found = session.pullback(x.numpy(), v.numpy(), T)
        twin = torch.jit.load(bundle.path / "pullback.ts")(x, v, torch.tensor(T))
        for values in (found, twin):
            np.testing.assert_allclose(np.asarray(values[0]), output.numpy(), rtol=1e-3, atol=1e-5)
            assert np.linalg.norm(np.asarray(values[1]) - expected.numpy()) < 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", [Halved, Reckoned, Attended, Restored])
def test_arithmetic_on_sizes_is_the_same_in_each_artifact(kind: type[Small], tmp_path: Path) -> None:
    bundle = surgeon.export(made(kind), tmp_path / "any", ANY, check=False)
    module, session = made(kind).double(), surgeon.load(bundle.path)
    twin = torch.jit.load(bundle.path / "pullback.ts")
    for size in ((32, 40), (33, 41), (32, 43), (31, 48)):
        x, v = torch.randn(2, 3, *size), torch.randn(2, 5)
        output, expected = reference_pullback(module, x.double(), v.double(), recipe=ANY, temperature=T)
        for values in (session.pullback(x.numpy(), v.numpy(), T), twin(x, v, torch.tensor(T))):
            np.testing.assert_allclose(np.asarray(values[0]), output.numpy(), rtol=1e-3, atol=1e-5)
            assert np.linalg.norm(np.asarray(values[1]) - expected.numpy()) < 1e-5 * expected.norm()


def test_what_torchscript_has_no_word_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(torchscript_writer.TORCHSCRIPT_EQUIVALENTS, torch.sym_max)
    with pytest.raises(ConversionError, match=r"TorchScript cannot compile the graph \(Unknown .*sym_max.*onnx$"):
        surgeon.export(made(Longest), tmp_path / "any", ANY, formats=["torchscript"])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Parity, "at 33x43 it does something else than at 32x40"),
        (Counted, "at 33x43 it does something else than at 32x40"),
        (Large, "at 64x72 it does something else"),
        (Flat, "takes inputs of 32x40 alone|with a dynamic batch, height and width"),
        (Multiples, "at 64x64 it does something else"),
        (Tall, "at 600x40 it does something else"),
        (Low, "at 19x40 it does something else"),
        (Kernel, "at 34x46 it does something else than at 32x40"),
        (Steps, "takes them for fixed numbers, as a kernel's size, a count of steps"),
        (Cells, r"adaptive_max_pool2d.*other sizes at another height and width"),
    ],
)
def test_what_holds_for_one_size_alone_is_refused(kind: type[Small], said: str) -> None:
    with pytest.raises(ConversionError, match=said) as error:
        rewrite(made(kind), torch.randn(2, *kind.input_shape), ANY)
    assert "--dynamic-size" in str(error.value.remedy)
    PullbackModule(capture(made(kind), torch.randn(2, *kind.input_shape)), Recipe())


def test_an_input_without_height_and_width_is_refused(tmp_path: Path) -> None:
    row = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(SurgeonError, match="no height and width"):
        rewrite(row, torch.randn(2, 4), ANY)
    with pytest.raises(SurgeonError, match="not a picture"):
        surgeon.export(row, tmp_path / "row", ANY, input_shape=(4,))


def test_shapes_of_gates_are_formulas_of_height_and_width() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 4), nn.ReLU())
    pullback = PullbackModule(capture(network, torch.randn(2, 3, 32, 40), dynamic_size=True), ANY)
    for height, width in ((32, 40), (17, 12)):
        maps = [network[:1](torch.zeros(1, 3, height, width)), network[:3](torch.zeros(1, 3, height, width))]
        for gate, values in zip(pullback.gates, maps, strict=True):
            assert [eval(str(size), {"N": 1, "H": height, "W": width}) for size in gate.shape] == list(values.shape)


def test_cells_of_a_fixed_size_are_left_to_the_exporter() -> None:
    cells = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten())
    graph = rewrite(cells, torch.randn(2, 3, 32, 40))
    assert torch.ops.aten._adaptive_avg_pool2d.default in {node.target for node in graph.graph.nodes}


def cropped() -> nn.Module:
    return made(Cropped)


def test_a_layer_of_any_size_from_the_command_line(exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photo, pictures = tmp_path / "photo.png", tmp_path / "pictures"
    values = np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8)
    PIL.Image.fromarray(values).save(photo)
    bundle = exported(cropped, dynamic_size=True, at=("coarse",), options=SHAPE)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.invoke(["run", str(bundle), str(photo), "--steps", "1", "-o", str(pictures), "--json", *arguments])
        return code, *capfd.readouterr()

    for given, size in ((), [32, 40]), (("--size", "native"), [61, 90]), (("--size", "33,50"), [33, 50]):
        code, out, err = run("--unit", "3", *given)
        assert (code, err) == (0, "") and json.loads(out)["photos"][0]["size"] == size
        with PIL.Image.open(pictures / "photo.perturbed.png") as picture:
            assert [picture.height, picture.width] == size
    clean = np.asarray(PIL.Image.open(pictures / "photo.clean.png"))
    assert clean.shape == (33, 50, 3)
    assert run("--unit", "3,30,44", "--size", "native")[0] == 0
    code, out, err = run("--unit", "3,31,44", "--size", "native")
    assert (code, out) == (1, "") and "channels 0 to 7 with y 0 to 30, x 0 to 44 at coarse" in err
    code, out, err = run("--unit", "8")
    assert (code, out) == (1, "") and "There are channels 0 to 7 at coarse." in err
    session = surgeon.load(bundle)
    x = torch.randn(1, 3, 45, 38)
    module = made(Cropped)
    with torch.no_grad():
        expected = module.coarse(module.fine(x).relu())
    assert session.output_shape_at(x.numpy()) == expected.shape[1:]
    cotangent = session.at_units((3,), session.output_shape_at(x.numpy()))
    np.testing.assert_allclose(session.pullback(x.numpy(), cotangent).output, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert cli.invoke(["inspect", str(bundle)]) == 0
    assert "any height and width, by default 3 x 32 x 40" in capfd.readouterr().out


@pytest.mark.slow
def test_resnet18(tmp_path: Path) -> None:
    made = surgeon.export(
        "resnet18", tmp_path / "any", ANY, weights="random", input_shape=(3, 64, 64), formats=["onnx"]
    )
    assert all(line.passed for line in made.manifest.verification)
