"""Choosing the temperature: the criteria against numpy, the command, and what is written into a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import onnx
import PIL.Image
import pytest

import surgeon
from surgeon import cli
from surgeon.analysis.evaluate import calibration
from surgeon.analysis.evaluate.calibration import Candidate, Seen, Tried, best_two, choose, grid, judged, look, scales
from surgeon.analysis.figures.layouts import upper_title
from surgeon.bundle.default_temperature import set_temperature, with_temperature
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import GateSite, Manifest
from surgeon.errors import SurgeonError
from tests.tiny_bundle import SIDE, Tiny, write_tiny


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def photos(tmp_path) -> list[str]:
    random = numpy.random.default_rng(3)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        PIL.Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), numpy.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def call(capfd):
    def invoke(*arguments: object) -> tuple[int, str, str]:
        command = [] if arguments[0] == "set-temperature" else ["calibrate"]
        code = cli.invoke([*command, *map(str, arguments)])
        return code, *capfd.readouterr()

    return invoke


def cosine(a, b) -> float:
    a, b = a.ravel(), b.ravel()
    return max(0.0, float(a @ b / numpy.sqrt((a @ a) * (b @ b))))


def test_the_criteria_are_what_they_say(bundle: Path) -> None:
    session, tiny, t = surgeon.load(bundle), Tiny(), 0.7
    images = list(numpy.random.default_rng(5).uniform(-1, 1, (3, 3, SIDE, SIDE)).astype(numpy.float32))
    classes = [best_two(session, image) for image in images]
    seen = look(session, images, classes, Candidate(t, t), steps=2)

    def pullback(image, target) -> numpy.ndarray:
        return tiny.pullback(image[None], numpy.eye(5)[[target]], t)[1][0]

    own = [int(tiny.pullback(image[None], numpy.zeros((1, 5)))[0].argmax()) for image in images]
    assert [first for first, _ in classes] == own
    for i, (image, one) in enumerate(zip(images, seen, strict=True)):
        mine, after = pullback(image, own[i]), (i + 1) % 3
        other = own[after] if own[after] != own[i] else classes[i][1]
        assert one.targets == pytest.approx(1 - cosine(mine, pullback(image, other)), abs=1e-4)
        there = pullback(images[after], own[after])
        assert one.photos == pytest.approx(1 - cosine(pullback(image, own[after]), there), abs=1e-4)
        perturbed, _, _, score = tiny.ascent(image[None], numpy.eye(5)[[own[i]]], 2, 2.0, 4.0, t)
        rise = (score[-1, 0] - score[0, 0]) / numpy.linalg.norm(perturbed - image)
        assert one.rise == pytest.approx(rise, rel=1e-4)
        assert one.perturbed == pytest.approx(perturbed[0], abs=1e-4)
        # By one pixel: down and right, up and right; the edges behind it are repeated, and left out on the way back.
        padded = numpy.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        moved = [padded[:, :-2, :-2], padded[:, 2:, :-2]]
        back = [pullback(moved[0], own[i])[:, 2:, 2:], pullback(moved[1], own[i])[:, :-2, 2:]]
        same = [cosine(mine[:, 1:-1, 1:-1], one) for one in back]
        noise = numpy.random.default_rng(0).normal(0, 0.04, image.shape)
        noisy = pullback(numpy.clip(image + noise, -1, 1), own[i])
        same.append(cosine(mine[:, 1:-1, 1:-1], noisy[:, 1:-1, 1:-1]))
        assert one.stability == pytest.approx(numpy.mean(same), abs=1e-4)


def test_the_largest_product_is_chosen() -> None:
    def seen(stability: float, rise: float) -> Seen:
        return Seen(stability, 0.5, 0.8, rise, numpy.zeros(1))

    candidates = [Candidate(t, t) for t in (0.1, 1.0, 10.0)]
    rises = [[4.0, 10.0], [2.0, 10.0], [-1.0, 0.0]]
    stable = (0.2, 0.6, 1.0)
    tried = judged(candidates, [[seen(s, a), seen(s, b)] for s, (a, b) in zip(stable, rises, strict=True)])
    assert [one.gain for one in tried] == [1.0, 0.75, 0.0]  # of each photo's largest; what falls is 0
    assert [round(one.product, 3) for one in tried] == [0.08, 0.18, 0.0]
    assert choose(tried) is tried[1]
    assert choose([Tried(candidates[0], 1, 1, 1, 0)]) is None


def test_the_grid_is_even_by_logarithm() -> None:
    assert grid(0.03, 10, 11) == [0.03, 0.054, 0.096, 0.17, 0.31, 0.55, 0.98, 1.8, 3.1, 5.6, 10.0]
    assert grid(1, 1.02, 3) == [1.0, 1.01, 1.02]  # more digits where two do not tell them apart


def test_scales_are_standard_deviations_over_units_and_photos() -> None:
    class Stub:
        manifest = type("M", (), {"gates": [gate("a", "soft"), gate("b", "hard"), gate("c", "soft")]})
        one_hot = staticmethod(lambda target: None)
        values = iter([numpy.array([0.0, 2.0]), numpy.array([4.0, 6.0])])

        def gates(self, image, cotangent):
            return {"pre_activation/a": next(self.values), "pre_activation/c": numpy.full(2, 7.0)}

    assert scales(Stub(), [numpy.zeros((3, 2, 2))] * 2) == (pytest.approx(5**0.5), 1.0, 1.0)


def gate(node: str, rule: str) -> GateSite:
    return GateSite(node, node, "aten.relu.default", "gate", rule, ("N", 2))


def test_the_command_chooses_draws_and_leaves_the_bundle(call, bundle: Path, photos, tmp_path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    strip = tmp_path / "new" / "strip.png"
    code, out, err = call(bundle, *photos, "--count", "3", "--strip", strip, "--side", "32", "--json", "--quiet")
    assert (code, err) == (0, "")
    report = json.loads(out)
    chosen = [row for row in report["tried"] if row["chosen"]]
    assert len(report["tried"]) == 3 and len(chosen) == 1 and report["written"] is None
    assert chosen[0]["product"] == max(row["product"] for row in report["tried"])
    assert chosen[0]["product"] == pytest.approx(numpy.prod([chosen[0][name] for name in calibration_names()]))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    with PIL.Image.open(strip) as picture:
        assert picture.height > 3 * 32
    code, out, err = call(bundle, *photos, "--count", "2")
    assert code == 0 and "stability" in out
    chosen = out.split("chosen: T ")[1].split(",")[0]
    assert f"Next: surgeon set-temperature {bundle} {chosen}\n" in out


def calibration_names() -> tuple[str, ...]:
    return ("stability", "targets", "photos", "gain")


def test_what_is_written_is_every_default(call, bundle: Path, photos) -> None:
    (bundle / "notes.txt").write_text("mine")
    image = numpy.random.default_rng(0).uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(numpy.float32)
    session = surgeon.load(bundle)
    cotangent = session.one_hot([1, 3])
    at = {t: session.pullback(image, cotangent, t).pullback for t in (0.3, 2.5)}
    code, out, _ = call("set-temperature", bundle, "2.5")
    assert code == 0 and "T = 2.5 written as the default" in out
    again = surgeon.load(bundle)
    again.bundle.check()  # sizes and hashes
    manifest = again.manifest
    assert manifest.defaults.temperature == 2.5 and "notes.txt" not in manifest.files
    ports = [port for artifact in manifest.artifacts.values() for port in artifact.inputs if port.name == "temperature"]
    assert [port.default for port in ports] == [2.5] * 3
    assert again.pullback(image, cotangent).pullback == pytest.approx(at[2.5], rel=1e-5, abs=1e-6)
    import onnxruntime

    for name in ("pullback.onnx", "ascent_step.onnx", "ascent.onnx"):
        model = onnx.load(bundle / name, load_external_data=False)
        (default,) = [one for one in model.graph.initializer if one.name == "temperature"]
        assert onnx.numpy_helper.to_array(default) == numpy.float32(2.5)
        told = Manifest.from_json(next(entry.value for entry in model.metadata_props if entry.key == "surgeon"))
        assert told.defaults.temperature == 2.5
    plain = onnxruntime.InferenceSession(str(bundle / "pullback.onnx"), providers=["CPUExecutionProvider"])
    found = plain.run(None, {"input": image, "cotangent": cotangent})[1]
    assert found == pytest.approx(at[2.5], rel=1e-5, abs=1e-6)
    assert numpy.abs(found - at[0.3]).max() > 0.01
    assert (bundle / "notes.txt").read_text() == "mine"
    code, out, _ = call(bundle, *photos, "--count", "2", "--from", "0.5", "--to", "4", "--write", "--json")
    report = json.loads(out)
    assert code == 0 and Bundle.open(bundle).manifest.defaults.temperature == report["written"]
    assert report["written"] == report["chosen"]["temperature"] and report["written"] in (0.5, 4.0)


def test_torchscript_has_the_default_too(digits_bundle: Path, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    copied = Path(shutil.copytree(digits_bundle, tmp_path / "digits"))
    set_temperature(Bundle.open(copied), 1.25)
    image, cotangent = torch.rand(2, 3, 32, 32), torch.eye(10)[:2]
    for name, given in (("pullback.ts", ()), ("ascent.ts", (torch.tensor(20.0), torch.tensor(50.0), torch.tensor(2)))):
        script = torch.jit.load(str(copied / name))
        was = torch.jit.load(str(digits_bundle / name))
        with torch.no_grad():
            expected = was(image, cotangent, torch.tensor(1.25), *given)
            found = script(image, cotangent, None, *given)
            old = was(image, cotangent, None, *given)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not torch.equal(found[0] if given else found[1], old[0] if given else old[1])


def test_an_early_end_leaves_the_bundle_as_it_was(call, bundle: Path, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "save", interrupted)
    code, _, err = call("set-temperature", bundle, "2.5")
    assert code == 130 and "nothing was written" in err
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["tiny"]


def test_a_sweep_is_interrupted_without_harm(call, bundle: Path, photos, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "look", interrupted)
    assert call(bundle, *photos, "--write")[0] == 130
    Bundle.open(bundle).check()


def test_it_refuses_in_one_line(call, bundle: Path, photos, tmp_path) -> None:
    def refused(code: int, *arguments: object) -> str:
        found, out, err = call(*arguments)
        assert (found, out) == (code, "") and err.count("\n") == 1
        return err

    assert "Missing argument 'PHOTO...'" in refused(2, bundle)
    assert "--to 0.1 is not above --from 1" in refused(2, bundle, *photos, "--from", "1", "--to", "0.1")
    assert "Give two or more" in refused(1, bundle, photos[0])
    assert "takes no temperature" in refused(1, write_tiny(tmp_path / "hard", gate="hard"), *photos)
    assert "no target classes" in refused(1, write_tiny(tmp_path / "energy", objective="energy"), *photos)
    assert "it has no gates.onnx" in refused(1, bundle, *photos, "--per-gate")
    assert "0 is not above 0" in refused(2, "set-temperature", bundle, "0")
    assert "temperature is 1e+300" in refused(1, "set-temperature", bundle, "1e300")  # infinite as a float32
    assert "there.json cannot be read" in refused(1, "set-temperature", bundle, tmp_path / "there.json")
    (tmp_path / "text.json").write_text('["0.3"]')
    assert "no list of numbers" in refused(1, "set-temperature", bundle, tmp_path / "text.json")
    (tmp_path / "one.json").write_text("[0.3]")
    assert "one temperature for all gates" in refused(1, "set-temperature", bundle, tmp_path / "one.json")
    assert "'half' is not a number" in refused(2, "set-temperature", bundle, "half")
    assert "No such option" in refused(2, bundle, *photos, "--set", "1")
    with pytest.raises(SurgeonError, match="one temperature for all"):
        with_temperature(Bundle.open(bundle).manifest, (0.3,))
    with pytest.raises(SurgeonError, match="temperature is nan"):
        with_temperature(Bundle.open(bundle).manifest, float("nan"))


def test_where_no_temperature_passes_a_person_may_choose(call, bundle: Path, photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "choose", lambda tried: None)
    strip = tmp_path / "strip.png"
    code, out, err = call(bundle, *photos, "--strip", strip, "--write")
    assert code == 1 and "no temperature passes" in err and "stability" in out and strip.exists()
    assert f"surgeon set-temperature {bundle} T" in err
    code, out, _ = call("set-temperature", bundle, "0.5", "--json")
    assert code == 0 and json.loads(out)["written"] == 0.5


def test_a_temperature_for_each_gate(call, tmp_path) -> None:
    """Chosen, written, and verified against autograd once more."""
    torch = pytest.importorskip("torch")
    from surgeon.bundle.manifest import Recipe
    from surgeon.exporting import export
    from surgeon.network.sources import resolve
    from surgeon.verify.verify import require, verify

    recipe = Recipe(gate_outputs=True, temperature_input="per-gate")
    source = resolve("tests.digits:digits", preprocess="none")
    bundle = export(source, tmp_path / "digits", recipe, check=False)
    random = numpy.random.default_rng(0)
    photos = [tmp_path / "a.png", tmp_path / "b.png"]
    for photo in photos:
        PIL.Image.fromarray(random.integers(0, 256, (32, 32, 3), numpy.uint8)).save(photo)
    code, out, err = call(bundle.path, *photos, "--per-gate", "--count", "2", "--write", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert len(report["tried"]) == 4
    own = [row["candidate"] for row in report["tried"] if isinstance(row["candidate"]["temperature"], list)]
    assert numpy.divide(own[0]["temperature"], own[0]["factor"]) == pytest.approx(
        numpy.divide(own[1]["temperature"], own[1]["factor"])
    )
    values = tuple(0.2 + 0.1 * i for i in range(len(bundle.manifest.gates)))
    (tmp_path / "values.json").write_text(json.dumps(values))
    code, out, _ = call("set-temperature", bundle.path, tmp_path / "values.json")
    assert code == 0 and "a temperature for each gate written as the default" in out
    again = Bundle.open(bundle.path)
    assert again.manifest.default_temperature == values
    lines = verify(again.path, source.module)
    require(lines)
    assert {line.artifact for line in lines if "T default" in line.condition} >= {"pullback.onnx", "pullback.ts"}
    image = torch.rand(1, 3, 32, 32).numpy()
    session = surgeon.load(again.path)
    cotangent = session.one_hot(3)
    default, given = session.pullback(image, cotangent), session.pullback(image, cotangent, values)
    assert default.pullback == pytest.approx(given.pullback)
    assert "temperatures of their own" in upper_title(session, {"temperature": None})
    assert "T = 0.7" in upper_title(session, {"temperature": 0.7})
