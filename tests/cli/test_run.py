from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import PIL.Image
import pytest
from rich.console import Console

from surgeon import cli
from surgeon.analysis.figures.layouts import layout
from surgeon.analysis.inspect.inspection import SECTIONS
from surgeon.cli.reports.tables import table
from surgeon.errors import SurgeonError
from surgeon.runtime.photo_ascent import file_names
from tests.tiny_bundle import write_tiny

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("clean", "difference", "perturbed", "pullback")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny(folder / "soft")
    write_tiny(folder / "hard", gate="hard", verified=False)
    write_tiny(folder / "guided", gate="guided")
    write_tiny(folder / "energy", objective="energy")
    write_tiny(folder / "free", free=True)  # by what it says: its matrix takes one size
    half = write_tiny(folder / "half") / "manifest.json"  # hard gates, and pools that take the temperature
    half.write_text(half.read_text().replace('"gate": "soft"', '"gate": "hard"', 1))
    return folder


@pytest.fixture
def photos(tmp_path) -> list[str]:
    random = numpy.random.default_rng(0)
    paths = [tmp_path / name / "cat.png" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        PIL.Image.fromarray(random.integers(0, 256, (12, 16, 3), numpy.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def surgeon(capfd, tmp_path, monkeypatch):
    """Runs the command line in an empty folder: exit code, standard output, standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments):
        code = cli.invoke([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def pixels(path) -> numpy.ndarray:
    with PIL.Image.open(path) as picture:
        return numpy.asarray(picture)


def written(folder=".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_run_writes_four_pictures_of_each_photo(surgeon, bundles, photos):
    code, out, err = surgeon("run", bundles / "soft", *photos, "--target", "goldfish", "-o", "out")
    assert (code, err) == (0, "")
    assert written("out") == sorted(f"{name}.{kind}.png" for name in ("cat", "cat-2") for kind in KINDS)
    assert "goldfish (1)" in out and "before" in out and "after 5 steps" in out
    clean = pixels("out/cat.clean.png")
    assert clean.shape == (8, 8, 3)
    assert (clean != pixels("out/cat-2.clean.png")).any()


def test_run_json_is_all_of_standard_output(surgeon, bundles, photos):
    arguments = ["--target", "goldfish", "--target", "4", "--steps", "3", "--radius", "inf", "--temperature", "1.5"]
    code, out, err = surgeon("run", bundles / "soft", *photos, *arguments, "--json", "-o", "out")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["settings"] == {"steps": 3, "step_size": 2.0, "radius": "inf", "temperature": 1.5}
    first, second = report["photos"]
    assert first["size"] == [8, 8]
    assert first["target"] == {"index": 1, "label": "goldfish"} and second["target"]["index"] == 4
    assert len(first["score"]) == 4 and first["score"] == sorted(first["score"])
    assert sum(entry["probability"] for entry in first["before"]) == pytest.approx(1)
    assert first["after"][0]["label"] == "goldfish"
    assert all(Path(path).is_file() for path in [*first["files"].values(), *second["files"].values()])


def test_run_without_target_takes_what_the_network_sees(surgeon, bundles, photos):
    seen = json.loads(surgeon("run", bundles / "soft", photos[0], "--json")[1])["photos"][0]
    assert seen["target"]["index"] == seen["before"][0]["index"]
    fled = json.loads(surgeon("run", bundles / "soft", photos[0], "--json", "--descend")[1])
    assert fled["settings"]["step_size"] == -2
    assert fled["photos"][0]["after"][0]["index"] != seen["target"]["index"]
    assert written() == [f"exported/pictures/cat.{kind}.png" for kind in KINDS]


def test_run_without_target_opens_one_session(surgeon, bundles, photos, monkeypatch):
    from surgeon.runtime import loading

    opened, real = [], loading.open_session
    monkeypatch.setattr(
        loading, "open_session", lambda path, *rest, **how: (opened.append(path.name), real(path, *rest, **how))[1]
    )
    assert surgeon("run", bundles / "soft", *photos)[0] == 0
    assert opened == ["ascent_step.onnx"]


def test_run_energy_and_hard_gates(surgeon, bundles, photos):
    energy = json.loads(surgeon("run", bundles / "energy", photos[0], "--json")[1])["photos"][0]
    assert energy["target"] is None and energy["score"][-1] > energy["score"][0]
    assert json.loads(surgeon("run", bundles / "hard", photos[0], "--json")[1])["settings"]["temperature"] is None
    code, _, err = surgeon("run", bundles / "energy", photos[0], "--target", "1")
    assert code == 1 and "objective is energy" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SOFT", "missing.jpg"], 1, "the photo missing.jpg does not exist"),
        (["SOFT", "PHOTO", "text.png"], 1, "text.png is not a picture"),
        (["SOFT", "PHOTO", "--target", "golfdish"], 1, "The nearest are: 1 goldfish."),
        (["SOFT", "PHOTO", "--target", "5"], 1, "there is no class 5. The classes are 0 to 4."),
        (["SOFT", "PHOTO", "PHOTO", "PHOTO", "--target", "1", "--target", "2"], 2, "3 photos have 2 targets"),
        (["SOFT", "PHOTO", "--temperature", "0"], 2, "'--temperature': 0 is not above 0"),
        (["SOFT", "PHOTO", "--temperature", "nan"], 2, "nan is not a finite number"),
        (["SOFT", "PHOTO", "--step-size", "inf"], 2, "inf is not a finite number"),
        (["SOFT", "PHOTO", "--radius", "x"], 2, "'x' is not a number"),
        (["SOFT", "PHOTO", "--steps", "0"], 2, "'--steps': 0 is not in the range x>=1"),
        (
            ["SOFT", "PHOTO", "--size", "16"],
            1,
            "takes photos of 8x8 alone. Leave --size out, or export it with --dynamic",
        ),
        (["SOFT", "PHOTO", "--size", "native"], 1, "takes photos of 8x8 alone"),
        (["SOFT", "PHOTO", "--size", "8,0"], 2, "'8,0' is no size such as 320, 240,320 or native"),
        (["SOFT", "PHOTO", "--size", "3,8,8"], 2, "'3,8,8' is no size"),
        (["SOFT"], 2, "Missing argument 'PHOTO"),
        (["HARD", "PHOTO", "--temperature", "1"], 1, "no use for 'temperature'"),
        (["nowhere", "PHOTO"], 1, "the bundle nowhere does not exist. Make one with `surgeon export"),
        (["SOFT", "PHOTO", "-o", "text.png"], 1, "cannot be written"),
    ],
)
def test_each_mistake_is_one_line_and_writes_nothing(surgeon, bundles, photos, arguments, code, words):
    Path("text.png").write_text("hello")
    known = {"SOFT": bundles / "soft", "HARD": bundles / "hard", "PHOTO": photos[0]}
    found, out, err = surgeon("run", *[known.get(argument, argument) for argument in arguments])
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert written() == ["text.png"]


def test_a_device_that_is_not_there(surgeon, bundles, photos, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    code, out, err = surgeon("run", bundles / "soft", photos[0], "--device", "cuda")
    assert (code, out, err.count("\n")) == (5, "", 1) and "'cuda' is not there" in err


def test_interruption_says_what_was_written(surgeon, bundles, photos, monkeypatch):
    from surgeon.runtime.session import Session

    real, calls = Session.steps, []

    def steps(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:  # two of each photo: one for its class, one for the ascent
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(Session, "steps", steps)
    code, _, err = surgeon("run", bundles / "soft", *photos, "-o", "out")
    assert (code, err.count("\n")) == (130, 1) and "interrupted after 1 of 2 photos; their pictures are in out" in err
    calls[:] = [0, 0]
    code, _, err = surgeon("run", bundles / "soft", *photos, "-o", "none")
    assert (code, err.strip()) == (130, "interrupted: nothing was written.")
    assert not Path("none").exists()


def test_no_photo_is_overwritten(surgeon, bundles, photos):
    Path("cat.clean.png").write_bytes(Path(photos[0]).read_bytes())
    for command, output in ((["run"], "."), (["figure", "grid"], "cat.clean.png")):
        code, out, err = surgeon(*command, bundles / "soft", photos[0], "cat.clean.png", "-o", output)
        assert (code, out, err.count("\n")) == (1, "", 1) and "is one of the photos, and would be overwritten" in err
    assert written() == ["cat.clean.png"]


def test_names_and_terminals_without_unicode(bundles, photos, tmp_path):
    odd = os.fsdecode(b"caf\xe9\xff.png")
    photo = tmp_path / odd
    photo.write_bytes(Path(photos[0]).read_bytes())
    command = [sys.executable, str(REPOSITORY / "cli.py"), "run", str(bundles / "soft"), str(photo), "-o", "out"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, env=environment, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["photos"][0]["photo"] == str(photo)


def test_names_of_pictures_never_collide():
    photos = [Path(name) for name in ("a/cat.jpg", "b/Cat.png", "cat-2.jpg", "c/cat.jpg", "dog.jpg")]
    assert file_names(photos) == ["cat", "Cat-2", "cat-2-2", "cat-3", "dog"]


def test_figure_draws_two_grids(surgeon, bundles, photos):
    code, out, err = surgeon(
        "figure", "grid", bundles / "soft", *photos, "-o", "out/grid.png", "--side", "64", "--json"
    )
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["panels"] == ["Excitation pullbacks (T = 0.3)", "Ordinary gradients (the same artifact at T = 1e-06)"]
    assert [row["own"] in row["targets"] for row in report["rows"]] == [True, True]
    picture = pixels("out/grid.png")
    assert picture.shape[1] >= 640
    framed = (picture == (200, 69, 45)).all(axis=2).sum()
    assert framed == 4 * 4 * 3 * (64 + 3)  # each photo's own class, in both grids
    assert written() == ["out/grid.png"]


def test_figure_against_a_hard_bundle_differs_by_its_gates_only(surgeon, bundles, photos):
    arguments = ["figure", "grid", bundles / "soft", photos[0], "--target", "1", "--side", "64", "--json"]
    code, out, _ = surgeon(*arguments, "--against", bundles / "hard", "-o", "against.png")
    assert code == 0 and json.loads(out)["panels"][1] == "Ordinary gradients (hard gates, from hard)"
    surgeon(*arguments, "-o", "zero.png")
    lower = [pixels(f"{name}.png")[-190:] for name in ("against", "zero")]
    assert (lower[0] == lower[1]).mean() > 0.95  # T near 0 is the hard gate; the titles differ
    upper = pixels("zero.png")[: lower[0].shape[0]]
    assert (upper != lower[1]).mean() > 0.05
    code, _, err = surgeon(*arguments, "--against", bundles / "soft")
    assert code == 1 and "not hard" in err


def test_figure_of_other_gates(surgeon, bundles, photos):
    code, out, _ = surgeon("figure", "grid", bundles / "hard", photos[0], "--json", "--side", "64")
    assert code == 0 and json.loads(out)["panels"] == ["Ordinary gradients (hard gates)"]
    assert json.loads(surgeon("figure", "grid", bundles / "half", photos[0], "--json")[1])["panels"] == [
        "Hard gates, soft pools (T = 0.3)",
        "Ordinary gradients (the same artifact at T = 1e-06)",
    ]
    for bundle, words in (("guided", "guided gates"), ("energy", "energy")):
        code, _, err = surgeon("figure", "grid", bundles / bundle, photos[0])
        assert code == 1 and words in err
    code, _, err = surgeon("figure", "grid", bundles / "soft", photos[0], "-o", "figure.doc")
    assert code == 1 and "names a picture format" in err


def test_layout_is_square_until_it_is_too_wide():
    assert layout([7, 8, 7], [], 6, 1) == [[7, 8, 1]] * 3
    assert layout([7, 8], [3, 4], 6, None) == [[3, 4]] * 2
    assert layout([1, 2, 3], [], 2, 0) == [[1, 2, 0], [2, 1, 0], [3, 1, 0]]
    with pytest.raises(SurgeonError, match="3 classes or units do not fit into 2 columns"):
        layout([1, 2], [3, 4, 5], 2, 0)  # what was asked for is not left out


def test_a_size_that_the_network_does_not_take(surgeon, bundles, photos):
    code, _, err = surgeon("figure", "grid", bundles / "free", photos[0], "--size", "9", "-o", "grid.png")
    assert code == 1 and "[1, 3, 9, 9]" in err and "give a size that the network takes" in err
    code, _, err = surgeon("run", bundles / "free", photos[0], "--size", "9000000")
    assert (code, err.count("\n")) == (1, 1) and "an input of 9000000x9000000 takes 972000 GB, and this" in err
    code, _, err = surgeon("run", bundles / "free", photos[0], "--size", "2,9")
    assert code == 1 and err == "error: nothing is left of an input of 2x9 at hidden. Give a larger one.\n"
    code, out, err = surgeon("figure", "grid", bundles / "free", photos[0], "--size", "8", "-o", "grid.png", "--json")
    assert (code, err) == (0, "") and json.loads(out)["rows"][0]["size"] == [8, 8]


def test_inspect_shows_ports_gates_operators_and_verification(surgeon, bundles):
    code, out, err = surgeon("inspect", bundles / "soft", "--show", "all")
    assert (code, err) == (0, "")
    for words in ("temperature", "[N, 3, 8, 8]", "7 nodes", "aten.relu.default", "all 1 within", "crane", "Sigmoid"):
        assert words in out
    assert "not verified" in surgeon("inspect", bundles / "hard")[1]
    assert "verif" not in surgeon("inspect", bundles / "soft" / "pullback.onnx")[1]
    told = json.loads(surgeon("inspect", bundles / "soft", "--json")[1])
    assert set(told) == {"path", "overview", "ports", "operators", "verification"}
    assert told["overview"]["facts"]["model"]["name"] == "tiny"
    code, out, err = surgeon("inspect", "exported/tiny")
    assert (code, out, err.count("\n")) == (1, "", 1) and "no bundle or file exported/tiny" in err


def test_sections_are_chosen_by_name(surgeon, bundles):
    code, out, err = surgeon("inspect", bundles / "soft", "--show", "classes,layers", "--show", "gates", "--json")
    told = json.loads(out)
    assert (code, err, list(told)) == (0, "", ["path", "layers", "gates", "classes"])
    assert told["gates"][0]["rule"] == "soft" and told["classes"][2] == "tiger cat"
    assert set(json.loads(surgeon("inspect", bundles / "soft", "--show", "all", "--json")[1])) == {"path", *SECTIONS}
    code, _, err = surgeon("inspect", bundles / "soft", "--show", "layers,weights")
    assert code == 2 and "'weights' is not one of 'overview'," in err and err.count("\n") == 1
    code, _, err = surgeon("inspect", bundles / "soft" / "pullback.onnx", "--show", "verification")
    assert code == 1 and "has no section verification" in err and err.count("\n") == 1


def test_sections_are_filtered_by_module_and_node(surgeon, digits_bundle):
    def told(pattern, section="layers"):
        code, out, err = surgeon("inspect", digits_bundle, "--show", section, "--filter", pattern, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)[section]

    assert [layer["module"] for layer in told("features.[24]")] == ["features.2", "features.4"]
    assert len(told("features")) == 8 and len(told("features", "gates")) == 5
    assert [gate["module"] for gate in told("relu_1", "gates")] == ["features.6"]
    (pair,) = told("features.6", "nodes")
    assert [node["operator"] for node in pair["forward"]] == ["Relu"]
    assert [node["operator"] for node in pair["backward"]] == ["Mul", "Sigmoid", "Mul"]
    for section in ("layers", "nodes", "gates"):
        code, out, err = surgeon("inspect", digits_bundle, "--show", section, "--filter", "stem")
        assert (code, out) == (1, "") and "no module or node is called 'stem'" in err and err.count("\n") == 1


def test_a_narrow_terminal_gets_fewer_columns_and_a_pipe_gets_all():
    columns, row = ("module", "operators", "output"), ("layer4.2.downsample", "BatchNormalization", "[N, 2048, 7, 7]")
    for terminal, width, there in ((True, 40, False), (True, 80, True), (False, 40, True)):
        written = io.StringIO()
        console = Console(file=written, width=width, force_terminal=terminal, color_system=None)
        console.print(table("layers", columns, [row], spare=("operators",)))
        assert ("BatchNorm" in written.getvalue()) == there and "layer4.2" in written.getvalue()


def test_names_do_not_steer_the_terminal():
    written = io.StringIO()
    Console(file=written, width=80).print(table("a\x1b[2J", ("b",), [["[red]\x1b[31m\x9bc"]]))
    assert "\x1b" not in written.getvalue() and "\x9b" not in written.getvalue() and "[red]" in written.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--graph", "graph.png"], "neither in .svg nor in .html"),
        (["--depth", "2"], "--depth goes with --graph"),
        (["--extra-input", "mask=1,8,8"], "--input and --extra-input go with a SOURCE"),
    ],
)
def test_options_that_do_not_go_together(surgeon, bundles, arguments, words):
    code, out, err = surgeon("inspect", bundles / "soft", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


def test_inspect_draws_graphs(surgeon, bundles):
    code, out, err = surgeon("inspect", bundles / "soft", "--graph", "there/graph.svg")
    assert (
        (code, err) == (0, "") and out.startswith("there/graph.svg (") and "<svg" in Path("there/graph.svg").read_text()
    )
    code, out, _ = surgeon("inspect", bundles / "soft", "--graph", "graph.html", "--show", "gates", "--json")
    assert code == 0 and set(json.loads(out)) == {"path", "gates", "graph"} and Path("graph.html").exists()
    Path("file").write_text("")
    code, out, err = surgeon("inspect", bundles / "soft", "--graph", "file/graph.svg")
    assert (code, out, err.count("\n")) == (1, "", 1) and "cannot be written" in err
    code, _, err = surgeon("inspect", bundles / "soft", "--graph", "no.svg", "--filter", "stem")
    assert code == 1 and "no module or node is called 'stem'" in err and not Path("no.svg").exists()


def test_group_help_version_and_near_commands(surgeon):
    assert surgeon("--version")[1].startswith("surgeon 0.")
    code, out, _ = surgeon("-h")
    assert code == 0 and "surgeon run exported/lite0" in out and "Exit codes" in out
    code, _, err = surgeon("rum")
    assert code == 2 and err == "error: There is no command 'rum'. Did you mean 'run'? See `surgeon --help`.\n"
    assert surgeon()[0] == 2
    assert "_SURGEON_COMPLETE" in surgeon("completion", "zsh")[1]
    code, _, told = surgeon("completion")
    assert (code, told.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["run", "evaluate", "calibrate", "set-temperature", "inspect", "check", "completion"])
def test_every_command_has_help(surgeon, name):
    code, out, _ = surgeon(name, "--help")
    assert code == 0 and f"surgeon {name}" in out and "Examples:" in out


def test_a_closed_pipe_is_quiet(bundles):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(REPOSITORY / "cli.py"), "inspect", str(bundles / "soft"), "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_runs_without_torch(bundles, photos, tmp_path):
    script = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnxscript"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NoTorch())
from surgeon.cli import invoke
bundle, photo, out = sys.argv[1:]
assert invoke(["export", "resnet50"]) == 1
codes = [invoke(["run", bundle, photo, "-o", out]), invoke(["figure", "grid", bundle, photo, "-o", out + "/f.png"])]
codes.append(invoke(["inspect", bundle, "--show", "all", "--graph", out + "/g.html"]))
codes.append(invoke(["inspect", bundle + "/pullback.onnx", "--show", "all", "--json", "--graph", out + "/g.svg"]))
sys.exit(any(codes) or any(name.split(".")[0] == "torch" for name in sys.modules))
"""
    command = [sys.executable, "-c", script, str(bundles / "soft"), photos[0], str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0
    assert done.stderr.startswith("error: torch is not installed") and done.stderr.count("\n") == 1
    assert len(written(tmp_path / "out")) == 7
