"""Long work: a bar on a terminal, silence where that is asked for, and Ctrl-C, which keeps what is done."""

from __future__ import annotations

import itertools
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy
import PIL.Image
import pytest

from surgeon import cli
from surgeon.analysis.bench import benchmark
from surgeon.analysis.evaluate import calibration
from surgeon.analysis.figures import layouts
from surgeon.errors import collect_until_interrupt
from tests.tiny_bundle import write_tiny

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def photos(tmp_path) -> list[str]:
    random = numpy.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("cat", "dog", "owl")]
    for path in paths:
        PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), numpy.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def surgeon(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.invoke([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def stop(monkeypatch):
    """Makes the `count`-th call of an attribute end as Ctrl-C ends it."""

    def patch(owner: object, name: str, count: int) -> None:
        real, calls = getattr(owner, name), itertools.count(1)

        def stopped(*arguments, **settings):
            if next(calls) == count:
                raise KeyboardInterrupt
            return real(*arguments, **settings)

        monkeypatch.setattr(owner, name, stopped)

    return patch


def cut_short(count: int):
    yield from range(count)
    raise KeyboardInterrupt


def test_what_is_done_is_kept():
    assert collect_until_interrupt(iter("abc")) == (["a", "b", "c"], False)
    assert collect_until_interrupt(cut_short(2)) == ([0, 1], True)
    assert collect_until_interrupt(cut_short(0), before=1) == ([], True)
    with pytest.raises(KeyboardInterrupt):
        collect_until_interrupt(cut_short(0))


def test_a_figure_of_several_pages(surgeon, bundle, photos, stop):
    stop(layouts.cells, "climbed", 2 * 2 + 1)  # two grids of each photo
    code, out, err = surgeon("figure", "grid", bundle, *photos, "--rows", "1", "--json")
    assert code == 130 and "interrupted after 2 of 3 photos" in err
    shown = json.loads(out)
    assert shown["pages"] == ["exported/figure.png", "exported/figure-2.png"] and len(shown["rows"]) == 2
    assert sorted(path.name for path in Path("exported").iterdir()) == ["figure-2.png", "figure.png"]


def test_a_page_that_is_half_done(surgeon, bundle, photos, stop):
    assert surgeon("figure", "grid", bundle, *photos[:2], "--columns", "3", "-o", "two.png")[0] == 0
    stop(layouts.cells, "climbed", 2 * 2 + 2)  # in the lower grid of the third photo
    code, out, err = surgeon("figure", "grid", bundle, *photos, "--columns", "3", "-o", "three.png")
    assert (code, out) == (130, "figure: three.png\n")
    assert err.endswith("interrupted after 2 of 3 photos, which are in three.png.\n")
    with PIL.Image.open("two.png") as two, PIL.Image.open("three.png") as three:
        assert two.height == three.height


def test_a_sweep_of_temperatures_chooses_nothing(surgeon, bundle, photos, stop):
    before = (bundle / "manifest.json").read_bytes()
    stop(calibration, "look", 4)
    code, out, err = surgeon("calibrate", bundle, *photos, "--write", "--strip", "strip.png", "--json")
    assert code == 130 and "after 3 of 11 temperatures; none is chosen or written" in err
    found = json.loads(out)
    assert (len(found["tried"]), found["chosen"], found["written"]) == (3, None, None)
    assert Path("strip.png").exists() and (bundle / "manifest.json").read_bytes() == before


def test_turns_of_a_benchmark(surgeon, bundle, stop):
    stop(benchmark.time, "sleep", 3 * 2 + 2)  # before the second of two contenders, in the fourth turn
    code, out, err = surgeon("bench", bundle, "--against", "none", "--warm-up", "0", "--json")
    assert code == 130 and "of 15 turns each these are done: batch 1: 3" in err
    report = json.loads(out)
    assert report["interrupted"] and all(len(one["seconds"]) == 3 for one in report["rounds"][0]["timings"])


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("command", ["run", "figure grid", "calibrate", "bench"])
def test_progress_is_shown_on_a_terminal_unless_quiet(bundle, photos, tmp_path, command, quiet):
    arguments = [str(bundle), *({"bench": ["--against", "none", "--repeats", "2"]}.get(command, photos))]
    keyboard, terminal = pty.openpty()
    called = [sys.executable, "-m", "surgeon", *command.split(), *arguments, *(["-q"] if quiet else [])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    done = subprocess.run(called, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path, env=environment, check=True)
    os.close(terminal)
    shown = b""
    while chunk := _read(keyboard):
        shown += chunk
    os.close(keyboard)
    assert (b"%" in shown) is not quiet and (shown == b"") is quiet
    assert (done.stdout == b"") is (quiet and command in ("run", "figure grid"))


def _read(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except OSError:  # Linux says so at the end of a terminal
        return b""
