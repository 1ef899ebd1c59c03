from __future__ import annotations

import dataclasses
import json
import math

import pytest

from surgeon.bundle.manifest import Artifact, Comparison, Defaults, Image, Manifest, Model, Port, Recipe
from surgeon.errors import SurgeonError
from tests.tiny_bundle import write_tiny


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return Manifest.from_json((write_tiny(tmp_path) / "manifest.json").read_text())


def test_what_is_written_is_read_back(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_nothing_optional_is_read_back():
    bare = Manifest(Model("m", "s", "random", "MIT", 1), Recipe(), Defaults(), None, None, ())
    assert Manifest.from_json(bare.to_json()) == bare


def test_pools_follow_the_gate_unless_told():
    assert [Recipe(gate=gate).pool for gate in ("soft", "hard", "guided")] == ["soft", "hard", "hard"]
    assert Recipe(gate="hard", pool="soft").pool == "soft"


def test_infinities_are_strings_and_come_back():
    model = Model("m", "s", "random", "MIT", 1)
    endless = Manifest(model, Recipe(), Defaults(radius=math.inf), Image(margin=math.inf), None, ())
    assert json.loads(endless.to_json())["defaults"]["radius"] == "inf"
    assert Manifest.from_json(endless.to_json()) == endless


def test_infinite_default_of_a_port_comes_back(manifest):
    port = Port("radius", "float32", (), "limit", math.inf)
    endless = dataclasses.replace(manifest, artifacts={"ascent.onnx": Artifact("onnx", (port,), ())})
    assert Manifest.from_json(endless.to_json()) == endless


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, "schema version 1"),
        ({"schema": None}, "schema version None"),
        ({"colour": "red"}, "colour"),
        ({"labels": [1, 2]}, "1 is not str"),
        ({"model": {"name": "m"}}, "source"),
        ({"defaults": {"temperature": "warm"}}, "warm"),
    ],
)
def test_another_layout_is_refused(manifest, change, words):
    with pytest.raises(SurgeonError, match=words):
        Manifest.from_json(json.dumps({**json.loads(manifest.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(SurgeonError, match=r"manifest is not JSON|schema version None"):
        Manifest.from_json(text)


def test_comparison_passes_at_its_tolerance_and_never_with_nan():
    line = Comparison("pullback.onnx", "pullback", "batch 1", 1e-4, 1e-4, "CPUExecutionProvider")
    assert line.passed
    assert not dataclasses.replace(line, error=2e-4).passed
    assert not dataclasses.replace(line, error=math.nan).passed
