from __future__ import annotations

import dataclasses
import json
import math

import pytest

import surgeon
from surgeon.bundle.choices import choices
from surgeon.bundle.manifest import Artifact, Comparison, Defaults, Image, Manifest, Model, Port, Recipe
from surgeon.cli import invoke
from surgeon.cli.export import command
from surgeon.conversion.gates import GATES
from surgeon.errors import SurgeonError
from tests.tiny_bundle import write_tiny

*OTHER_GATES, LAST_GATE = GATES
GATE_MENU = f"{', '.join(OTHER_GATES)} or {LAST_GATE}"


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


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"edges": "upper"}, "edges cannot be 'upper'. Choose lower or both"),
        ({"gate_scope": "module"}, "gate_scope cannot be 'module'. Choose all or modules"),
        ({"temperature_input": "per_gate"}, "temperature_input cannot be 'per_gate'. Choose scalar or per-gate"),
        ({"pool": "average"}, "pool cannot be 'average'. Choose soft or hard"),
        ({"objective": "logits"}, "objective cannot be 'logits'. Choose logit, cross-entropy or energy"),
        ({"step": None}, "step cannot be None. Choose unit, relative or raw"),
        ({"norm": 2}, "norm cannot be 2. Choose 1, 2 or inf"),
        ({"scalars": True}, "scalars cannot be True. Choose optional or required"),
        ({"precision": "fp64"}, "precision cannot be 'fp64'. Choose fp32 or fp16"),
        ({"weights_dtype": "int8"}, "weights_dtype cannot be 'int8'. Choose fp32 or fp16"),
        ({"layout": ("blocked",)}, "layout cannot be ('blocked',). Choose blocked, plain or tuned"),
        ({"gate": 1}, f"gate cannot be 1. Choose {GATE_MENU}"),
        ({"gate": "sotf"}, f"gate cannot be 'sotf'. Choose {GATE_MENU}"),
        ({"at": "conv"}, "at is the text 'conv', not a tuple of layers. Write at=('conv',)"),
        ({"at": ("conv", 3)}, "at cannot be ('conv', 3). Give a tuple, each item text"),
        (
            {"temperatures": (("conv", True),)},
            "temperatures cannot be (('conv', True),). Give a tuple, each item (text, a number)",
        ),
        ({"temperatures": (("conv", 0.0),)}, "temperature is 0.0. Give a number above 0 that float32 can hold"),
        ({"gate_outputs": 1}, "gate_outputs cannot be 1. Give True or False"),
        ({"dynamic_size": "yes"}, "dynamic_size cannot be 'yes'. Give True or False"),
        ({"opset": "18"}, "opset cannot be '18'. Give a whole number"),
        ({"opset": 18.0}, "opset cannot be 18.0. Give a whole number"),
        ({"opset": True}, "opset cannot be True. Give a whole number"),
        ({"opset": 17}, "opset cannot be 17. Choose 18 to 23"),
    ],
    ids=lambda value: next(iter(value.items()), ("",)) if isinstance(value, dict) else "",
)
def test_a_recipe_refuses_another_choice_by_name(choice, message):
    with pytest.raises(SurgeonError) as refused:
        surgeon.Recipe(**choice)
    assert str(refused.value) == message


def test_every_field_of_a_recipe_is_checked():
    for field in dataclasses.fields(Recipe):
        with pytest.raises(SurgeonError, match=field.name):
            surgeon.Recipe(**{field.name: object()})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0. Give a number above 0 that float32 can hold"),
        ({"temperature": math.inf}, "temperature is inf. Give a number above 0 that float32 can hold"),
        ({"temperature": "0.3"}, "temperature cannot be '0.3'. Give a number"),
        ({"step_size": math.nan}, "step_size is nan. Give a number that float32 can hold; a negative one descends"),
        ({"radius": -1}, "radius is -1. Give a number above 0; inf does not limit the perturbation"),
        ({"steps": 0}, "steps is 0. Give a whole number, 1 or more, that int64 can hold"),
        ({"steps": True}, "steps cannot be True. Give a whole number"),
        ({"steps": 2.0}, "steps cannot be 2.0. Give a whole number"),
    ],
)
def test_defaults_refuse_what_no_artifact_could_be_fed(value, message):
    with pytest.raises(SurgeonError) as refused:
        Defaults(**value)
    assert str(refused.value) == message


def test_the_command_line_offers_the_choices_and_refuses_others(capsys):
    offered = {param.name: param.type for param in command.params}
    for name in ("gate", "pool", "gate_scope", "edges", "temperature_input", "objective", "step", "norm", "scalars",
                 "precision", "weights_dtype", "layout"):  # fmt: skip
        assert tuple(offered[name].choices) == choices(Recipe, name)
        assert invoke(["export", "resnet18", f"--{name.replace('_', '-')}", "neither"]) == 2
        assert f"'neither' is not one of {', '.join(map(repr, choices(Recipe, name)))}" in capsys.readouterr().err


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
        ({"defaults": {"temperature": -1.0}}, "damaged .temperature is -1.0"),
        ({"recipe": {"edges": "upper"}}, "damaged .'upper' is none of 'lower', 'both'"),
        ({"recipe": {"opset": "18"}}, "damaged .'18' is not int"),
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
