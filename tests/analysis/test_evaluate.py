"""`surgeon evaluate`, on the bundle of a network that is computed here once more."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy
import PIL.Image
import pytest
from rich.console import Console

from surgeon import cli
from surgeon.analysis.evaluate import faithfulness
from surgeon.analysis.evaluate.evaluation import METRICS, Measured, Settings, measure, passes
from surgeon.analysis.evaluate.explanations import Method, network, pullbacks, random, smoothgrad
from surgeon.bundle.manifest import Image
from surgeon.cli.reports import evaluation_report
from surgeon.runtime.output_units import softmax
from surgeon.runtime.session import load
from tests.tiny_bundle import Tiny, write_tiny

QUICK = ("--curve-points", "4", "--perturbations", "6", "--samples", "3", "--smoothgrad", "3", "--quiet")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny(folder / "soft")
    write_tiny(folder / "hard", gate="hard")
    write_tiny(folder / "guided", gate="guided")
    renamed = write_tiny(folder / "renamed", gate="hard") / "manifest.json"
    renamed.write_text(renamed.read_text().replace('"weights": "random"', '"weights": "others"'))
    return folder


@pytest.fixture
def photos(tmp_path) -> list[str]:
    draw = numpy.random.default_rng(0)
    paths = [tmp_path / name for name in ("cat.png", "dog.png", "bird.png")]
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


def test_a_table_with_a_row_for_each_method(surgeon, bundles, photos):
    arguments = ["--against", bundles / "hard", "--against", f"gbp={bundles / 'guided'}", *QUICK]
    code, out, err = surgeon("evaluate", bundles / "soft", *photos, *arguments)
    assert (code, err) == (0, "")
    rows = [line.split()[0] for line in out.splitlines() if "±" in line and "mean" not in line]
    assert rows == ["soft", "hard", "gbp", "smoothgrad", "random"]
    assert all(name in out for name in METRICS) and "*" in out and "seed 0" in out and "3 photos" in out
    assert surgeon("evaluate", bundles / "soft", *photos, *arguments)[1] == out  # nothing is left to chance


def test_a_narrow_table_is_whole() -> None:
    values = dict.fromkeys(METRICS, 0.25)
    measured = [{"hard, over there": Measured(values, {})}] * 2
    console = Console(width=60, force_terminal=True, color_system=None, file=io.StringIO())
    evaluation_report.show(console, measured, [Method("hard, over there", lambda photos, classes: photos)], Settings())
    told = console.file.getvalue()
    assert "…" not in told and told.count("0.250 ±") == told.count("0.000") == len(METRICS)


def test_what_takes_more_than_there_is_says_so(surgeon, bundles, photos) -> None:
    code, _, err = surgeon(
        "evaluate", bundles / "soft", photos[0], "--curve-points", 10**17, "--perturbations", 2, "--quiet"
    )
    assert code == 1 and err.startswith("error: there is not enough memory") and err.count("\n") == 1


def test_json_holds_each_photo_and_the_means(surgeon, bundles, photos):
    arguments = ["--against", bundles / "hard", "--target", "crane", "--map", "product", *QUICK, "--json"]
    code, out, err = surgeon("evaluate", bundles / "soft", *photos, *arguments)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["settings"] == {
        "map": "product", "curve_points": 4, "perturbation": "squares", "perturbations": 6, "square": 1 / 7,
        "sigma": 0.05, "samples": 3, "radius": 0.05, "others": 4, "seed": 0,
    }  # fmt: skip
    assert [photo["target"] for photo in report["photos"]] == [{"index": 4, "label": "crane"}] * 3
    for metric in METRICS:
        for method, standing in report["summary"][metric].items():
            values = [photo["methods"][method][metric] for photo in report["photos"]]
            assert standing["mean"] == pytest.approx(numpy.mean(values))
    alone = json.loads(surgeon("evaluate", bundles / "soft", photos[2], *arguments)[1])
    assert alone["photos"][0]["methods"]["soft"] == report["photos"][2]["methods"]["soft"]  # whatever stands beside it
    assert alone["methods"][2] == {
        "name": "smoothgrad", "control": False, "bundle": str(bundles / "hard"), "gate": "hard", "pool": "hard",
        "temperature": None, "samples": 3, "level": 0.15,
    }  # fmt: skip


def test_several_temperatures_are_several_rows(surgeon, bundles, photos):
    arguments = ["--temperature", "0.000001", "--temperature", "2", "--against", bundles / "hard", *QUICK, "--json"]
    report = json.loads(surgeon("evaluate", bundles / "soft", photos[0], *arguments)[1])
    cold, warm, hard = (report["photos"][0]["methods"][name] for name in ("soft T=1e-06", "soft T=2", "hard"))
    assert cold == pytest.approx(hard, rel=1e-4)
    assert warm != pytest.approx(hard, rel=1e-2)


def test_measures_are_of_the_network_and_its_pullback(bundles):
    """Everything once more from the formulas, with the same draws."""
    session, tiny, settings, ran = (
        load(bundles / "soft"),
        Tiny(),
        Settings(curve_points=4, perturbations=6, samples=3),
        [],
    )
    photo = numpy.random.default_rng(1).uniform(-1, 1, (3, 8, 8)).astype(numpy.float32)
    seen = []

    def explain(photos, classes):
        seen.append((photos, list(classes)))
        return numpy.stack([tiny.pullback(x[None], numpy.eye(5)[[t]])[1][0] for x, t in zip(photos, classes)])  # noqa: B905

    methods, given = [pullbacks("artifact", session, None, ran.append), Method("formula", explain)], []

    def answer(photos):
        given.append(photos)
        return network(session, ran.append)(photos)

    found = measure(photo, 2, answer, methods, Image(height=8, width=8), settings)
    assert found["artifact"].values == pytest.approx(found["formula"].values, rel=1e-3)
    assert sum(ran) == passes(methods, settings) - (1 + 3 + 4)  # the formula's own went through no artifact

    (asked, classes), around = seen[0], slice(1, 4)
    assert (asked[0] == photo).all() and (asked[4:] == photo).all()
    assert 0.08 < numpy.abs(asked[around] - photo).max() <= 0.1 + 1e-6
    assert classes[:4] == [2] * 4 and sorted(classes[4:]) == [0, 1, 3, 4]
    whole, *changed = given[0]  # of infidelity: squares of one pixel have become grey, which is 0 here
    assert (whole == photo).all() and len(changed) == 6
    assert all(
        ((one != photo).all(axis=0) == (one == 0).all(axis=0)).all() and (one != photo).sum() == 3 for one in changed
    )
    logits = tiny.pullback(given[0], numpy.zeros((7, 5)))[0][:, 2]
    expected = faithfulness.infidelity(explain(photo[None], [2])[0], photo - given[0][1:], logits[0] - logits[1:])
    assert found["formula"].values["infidelity"] == pytest.approx(expected, rel=1e-3)
    map = numpy.abs(explain(photo[None], [2])[0]).sum(axis=0)
    shown = faithfulness.exchanged(photo, numpy.zeros_like(photo), map, 4)
    chances = softmax(tiny.pullback(shown, numpy.eye(5)[[2] * 5])[0], axis=1)[:, 2]
    assert found["formula"].curves["deletion"] == pytest.approx(chances, rel=1e-4)
    others = numpy.abs(explain(asked[4:], classes[4:])).sum(axis=1)
    assert found["formula"].values["class sensitivity"] == pytest.approx(faithfulness.class_sensitivity(map, others))


def test_a_linear_network_has_no_infidelity(bundles):
    weights = numpy.random.default_rng(2).normal(size=(3 * 8 * 8, 4)).astype(numpy.float32)

    def linear(photos):
        return photos.reshape(len(photos), -1) @ weights

    def gradient(photos, classes):
        return weights.T[list(classes)].reshape(photos.shape)

    photo = numpy.random.default_rng(1).uniform(-1, 1, (3, 8, 8)).astype(numpy.float32)
    methods = [Method("gradient", gradient), random("noise", 0)]
    for perturbation in ("squares", "noise"):
        settings = Settings(perturbation=perturbation)
        found = measure(photo, 1, linear, [*methods, smoothgrad("s", methods[0], 4, 0.1, 0)], Image(), settings)
        for name in ("gradient", "s"):
            assert found[name].values["infidelity"] == pytest.approx(0, abs=1e-6)
            assert found[name].values["max-sensitivity"] == pytest.approx(0, abs=1e-6)
        assert found["noise"].values["infidelity"] > 0.5


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot(surgeon, bundles, photos, ending):
    arguments = ["--against", bundles / "hard", *QUICK, "--plot", f"out/plot.{ending}"]
    code, out, err = surgeon("evaluate", bundles / "soft", *photos, *arguments)
    assert (code, err) == (0, "") and out.endswith(f"plot: out/plot.{ending}\n")
    if ending == "svg":
        text = Path("out/plot.svg").read_text()
        assert all(f">{word}</text>" in text for word in ("insertion", "smoothgrad", "max-sensitivity"))
    else:
        with PIL.Image.open("out/plot.png") as picture:
            assert picture.width > 1000
    assert [path.name for path in Path("out").iterdir()] == [f"plot.{ending}"]


def test_interruption_keeps_what_is_done(surgeon, bundles, photos, monkeypatch):
    from surgeon.analysis.evaluate import evaluation

    real, calls = evaluation.measure, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluation, "measure", stopped)
    code, out, err = surgeon("evaluate", bundles / "soft", *photos, *QUICK, "--json")
    assert code == 130 and "interrupted after 2 of 3 photos" in err
    assert [Path(photo["photo"]).name for photo in json.loads(out)["photos"]] == ["cat.png", "dog.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SOFT", "missing.png"], 1, "missing.png does not exist"),
        (["SOFT", "PHOTO", "--against", "SOFT"], 1, "two rows would be called 'soft'. Name one of them"),
        (["SOFT", "PHOTO", "--against", "=x"], 2, "'=x' is not NAME=BUNDLE"),
        (["SOFT", "PHOTO", "--against", "RENAMED"], 1, "differ in their weights"),
        (["HARD", "PHOTO", "--temperature", "1"], 1, "takes no temperature"),
        (["SOFT", "PHOTO", "--plot", "plot.doc"], 1, "has no ending of a plot. Choose .png, .svg, .pdf."),
        (["SOFT", "PHOTO", "--map", "mean"], 2, "'mean' is not one of"),
        (["SOFT", "PHOTO", "--curve-points", "0"], 2, "'--curve-points'"),
        (["SOFT", "PHOTO", "--target", "golfdish"], 1, "The nearest are: 1 goldfish."),
        (["SOFT", "PHOTO", "--plot", "PHOTO"], 1, "is one of the photos"),
    ],
)
def test_each_mistake_is_one_line(surgeon, bundles, photos, arguments, code, words):
    known = {name.upper(): bundles / name for name in ("soft", "hard", "renamed")} | {"PHOTO": photos[0]}
    found, out, err = surgeon("evaluate", *[known.get(argument, argument) for argument in arguments])
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_other_weights_of_one_name_are_found_out(surgeon, bundles, photos, tmp_path, monkeypatch):
    import tests.tiny_bundle

    monkeypatch.setattr(tests.tiny_bundle, "Tiny", lambda: Tiny(seed=1))
    other = write_tiny(tmp_path / "other", gate="hard")
    code, _, err = surgeon("evaluate", bundles / "soft", photos[0], "--against", other)
    assert code == 1 and "answer differently: their weights are not the same" in err


def test_without_matplotlib_only_plots_are_refused(surgeon, bundles, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert surgeon("evaluate", bundles / "soft", photos[0], *QUICK)[0] == 0
    code, _, err = surgeon("evaluate", bundles / "soft", photos[0], "--plot", "plot.png")
    assert code == 1 and "matplotlib is not installed" in err and "pip install 'surgeon[plot]'" in err
