"""The strips and atlases of `surgeon figure`, against ascents that are run here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import PIL.Image
import pytest

from surgeon import cli
from surgeon.analysis.figures import cells
from surgeon.runtime import pictures
from surgeon.runtime.output_units import softmax
from surgeon.runtime.photos import load_photo
from surgeon.runtime.session import load
from tests.tiny_bundle import write_tiny

SETTINGS = {"steps": 4, "step_size": 1.0, "radius": 3.0, "temperature": 0.7}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny(folder / "soft")
    write_tiny(folder / "hard", gate="hard")
    return folder


@pytest.fixture
def image() -> numpy.ndarray:
    return numpy.random.default_rng(5).uniform(-1, 1, (3, 8, 8)).astype(numpy.float32)


@pytest.fixture
def photos(tmp_path) -> list[str]:
    draw = numpy.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for path in paths:
        PIL.Image.fromarray(draw.integers(0, 256, (8, 8, 3), numpy.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def surgeon(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.invoke([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def same(picture: PIL.Image.Image, expected: PIL.Image.Image) -> bool:
    return bool((numpy.abs(numpy.asarray(picture).astype(int) - numpy.asarray(expected)) <= 1).all())


def test_a_strip_of_steps_shows_the_photo_after_them(bundles, image):
    session, ticks = load(bundles / "soft"), []
    strip = cells.after_steps(session, image, 3, (0, 1, 4), SETTINGS, lambda: ticks.append(1))
    assert len(strip) == 3 and len(ticks) == 5
    assert same(strip[0].picture, pictures.to_picture(image, session.manifest.image))
    for cell, count in zip(strip[1:], (1, 4), strict=True):
        there = session.ascent(image[None], session.one_hot(3), **{**SETTINGS, "steps": count})
        assert same(cell.picture, pictures.to_picture(there.perturbed[0], session.manifest.image))
        assert cell.caption == f"{100 * softmax(there.output)[0, 3]:.0f} %"
    assert not same(strip[1].picture, strip[2].picture)


def test_a_strip_of_temperatures_shows_what_each_adds(bundles, image):
    session = load(bundles / "soft")
    strip = cells.at_temperatures(session, image, 2, (0.1, 3.0), SETTINGS, 0, lambda: None)
    for cell, temperature in zip(strip, (0.1, 3.0), strict=True):
        there = session.ascent(image[None], session.one_hot(2), **{**SETTINGS, "temperature": temperature})
        assert same(cell.picture, pictures.difference(image, there.perturbed[0]))
    assert not same(strip[0].picture, strip[1].picture)


def test_an_atlas_shows_the_strongest(bundles, image):
    session = load(bundles / "soft")
    output = session.pullback(image[None], session.one_hot(0)).output[0]
    found = cells.strongest(session, image, 3)
    assert found == {"the output": sorted(range(5), key=lambda index: -output[index])[:3]}
    above, beneath = cells.of_units(session, image, found["the output"], SETTINGS, 0, lambda: None)
    for index, upper, lower in zip(found["the output"], above, beneath, strict=True):
        pulled = session.pullback(image[None], session.one_hot(index), 0.7).pullback[0]
        there = session.ascent(image[None], session.one_hot(index), **SETTINGS).perturbed[0]
        assert same(upper.picture, pictures.heat(pulled)) and upper.caption == session.label(index).split(",")[0]
        assert same(lower.picture, pictures.difference(image, there))


def test_cells_are_named_after_classes_and_places():
    class Stub:
        def label(self, target):
            return {3: "tench, Tinca tinca", (3, 2, 4): "block channel 3 at 2,4", (1, 0): "car, auto at 0"}[target]

    names = [cells.name(Stub(), target) for target in (3, (3, 2, 4), (1, 0))]
    assert names == ["tench", "block channel 3 at 2,4", "car at 0"]


def test_strips_on_pages(surgeon, bundles, photos):
    arguments = ["--steps", "2,0,2", "--rows", "2", "--side", "96", "-o", "out/f.svg", "--json"]
    code, out, err = surgeon("figure", "steps", bundles / "soft", *photos, *arguments)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["pages"] == ["out/f.svg", "out/f-2.svg"] and report["panels"] == ["Excitation pullbacks (T = 0.3)"]
    assert [row["steps"] for row in report["rows"]] == [[0, 2]] * 3
    assert [Path(page).read_text().count("<image") for page in report["pages"]] == [4, 2]
    assert "the photo</text>" in Path("out/f.svg").read_text() and "2 steps</text>" in Path("out/f.svg").read_text()


def test_each_photo_has_its_target(surgeon, bundles, photos):
    arguments = ["--temperatures", "1,0.1", *("--target", "crane", "--target", "0", "--target", "2"), "--json"]
    report = json.loads(surgeon("figure", "temperatures", bundles / "soft", *photos, *arguments)[1])
    assert [row["target"] for row in report["rows"]] == [4, 0, 2]
    assert report["rows"][0]["temperatures"] == [0.1, 1]
    alone = json.loads(
        surgeon("figure", "temperatures", bundles / "soft", photos[0], "--temperatures", "1", "--json")[1]
    )
    session = load(bundles / "soft")
    seen = session.pullback(load_photo(photos[0], session.manifest.image)[None], session.one_hot(0)).output
    assert alone["rows"][0]["target"] == seen[0].argmax()


def test_an_atlas_of_classes(surgeon, bundles, photos):
    arguments = ["--count", "4", "--columns", "3", "--side", "40", "-o", "f.svg", "--json"]
    report = json.loads(surgeon("figure", "units", bundles / "hard", *photos[:2], *arguments)[1])
    assert report["panels"] == [f"{name}.png: the 4 strongest classes of the output" for name in "ab"]
    assert Path("f.svg").read_text().count("<image") == 2 * (1 + 2 * 4)


@pytest.mark.parametrize(
    ("kind", "arguments", "code", "words"),
    [
        ("steps", ["SOFT", "--steps", "1,x"], 2, "'x' is no number of steps. Write a list such as 0,1,5,20"),
        ("steps", ["SOFT", "--steps", "0"], 2, "takes no step"),
        ("steps", ["SOFT", "--steps", "-1,2"], 2, "'-1' is no number of steps"),
        ("temperatures", ["SOFT", "--temperatures", "0,1"], 2, "0 is not above 0"),
        ("temperatures", ["SOFT", "--temperatures", "nan"], 2, "nan is not a finite number"),
        ("temperatures", ["SOFT", "--temperature", "2"], 2, "No such option"),
        ("steps", ["SOFT", "--against", "HARD"], 2, "No such option"),
        ("units", ["SOFT", "--target", "1"], 2, "No such option"),
        ("units", ["SOFT", "--count", "0"], 2, "'--count'"),
        ("temperatures", ["HARD"], 1, "takes no temperature"),
        ("units", ["SOFT", "--count", "2", "-o", "f.doc"], 1, "names a picture format"),
        (
            "temperatures",
            ["SOFT", "--temperatures", ",".join(f"0.{i:03}" for i in range(1, 200)), "--side", "1024"],
            1,
            "pixels. Give",
        ),
        ("SOFT", [], 2, "There is no command"),
        ("step", ["SOFT"], 2, "Did you mean 'steps'?"),
    ],
)
def test_each_mistake_is_one_line_and_draws_nothing(surgeon, bundles, photos, kind, arguments, code, words):
    known = {"SOFT": str(bundles / "soft"), "HARD": str(bundles / "hard")}
    given = [known.get(argument, argument) for argument in arguments]
    found, out, err = surgeon("figure", known.get(kind, kind), *given[:1], photos[0], *given[1:])
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert not list(Path().glob("**/f*"))


def test_each_kind_has_help_and_examples(surgeon):
    assert "grid" in surgeon("figure", "--help")[1]
    for kind in ("grid", "steps", "temperatures", "units"):
        code, out, _ = surgeon("figure", kind, "--help")
        assert code == 0 and f"surgeon figure {kind} exported" in out
