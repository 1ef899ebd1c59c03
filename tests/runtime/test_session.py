from __future__ import annotations

import math

import numpy
import onnx
import pytest

import surgeon
from surgeon.errors import ProviderError, SurgeonError
from surgeon.runtime.output_units import softmax, top
from surgeon.runtime.providers import _cut
from surgeon.runtime.session import load
from tests.tiny_bundle import CLASSES, LABELS, Tiny, write_tiny


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for gate in ("soft", "hard"):
        write_tiny(folder / gate, gate=gate)
    for objective in ("energy", "cross-entropy"):
        write_tiny(folder / objective, objective=objective)
    return folder


@pytest.fixture(scope="module")
def session(bundles):
    return load(bundles / "soft", threads=1)


@pytest.fixture
def photos():
    return numpy.random.default_rng(1).uniform(-1, 1, (3, 3, 8, 8)).astype(numpy.float32)


def close(actual, expected):
    return numpy.linalg.norm(actual - expected) <= 1e-5 * numpy.linalg.norm(expected)


@pytest.mark.parametrize("temperature", [None, 0.1, 3.0])
def test_pullback_is_the_formulas(session, photos, temperature):
    cotangent = session.one_hot([0, 2, 4])
    found = session.pullback(photos, cotangent, temperature)
    for actual, expected in zip(found, Tiny().pullback(photos, cotangent, temperature or 0.3), strict=True):
        assert actual.dtype == numpy.float32
        assert close(actual, expected)


@pytest.mark.parametrize("kind", ["soft", "hard", "energy", "cross-entropy"])
def test_the_output_is_a_forward_pass_alone(bundles, photos, kind):
    session = load(bundles / kind, threads=1)
    output = session.output(photos)
    assert output.dtype == numpy.float32
    assert close(output, Tiny().pullback(photos, numpy.zeros((3, CLASSES)))[0])
    forward = session.loaded.forward().session
    assert [port.name for port in forward.get_inputs()] == ["input"] and not forward.get_overridable_initializers()
    assert [port.name for port in forward.get_outputs()] == ["output"]
    assert not session.loaded._sessions
    with pytest.raises(SurgeonError, match="dtype float64"):
        session.output(photos.astype(numpy.float64))


def test_the_forward_pass_leaves_the_backward_weights_on_disk(bundles):
    path = bundles / "soft" / "pullback.onnx"
    whole, cut = onnx.load(path, load_external_data=False).graph, _cut(path, ["output"]).graph
    assert {node.op_type for node in cut.node} == {"Flatten", "MatMul", "Relu"}
    assert {tensor.name for tensor in cut.initializer} == {"first", "second"} < {t.name for t in whole.initializer}
    assert all(tensor.external_data for tensor in cut.initializer)


def test_hard_gates_take_no_temperature(bundles, photos):
    hard = load(bundles / "hard")
    cotangent = hard.one_hot([0, 1, 2])
    assert close(hard.pullback(photos, cotangent).pullback, Tiny().pullback(photos, cotangent, gate="hard")[1])
    with pytest.raises(SurgeonError, match="no use for 'temperature' \\(gate hard"):
        hard.pullback(photos, cotangent, 1.0)


@pytest.mark.parametrize(("size", "radius"), [(1.5, 3.0), (-2.0, math.inf)])
def test_loop_and_steps_are_the_same_ascent(session, photos, size, radius):
    cotangent = session.one_hot([1, 2, 3])
    settings = {"steps": 4, "step_size": size, "radius": radius, "temperature": 0.7}
    expected = Tiny().ascent(photos, cotangent, 4, size, radius, 0.7)
    loop = session.ascent(photos, cotangent, **settings)
    assert all(close(actual, wanted) for actual, wanted in zip(loop, expected, strict=True))
    states = list(session.steps(photos, cotangent, **settings))
    assert [step.number for step in states] == [0, 1, 2, 3, 4]
    assert close(states[-1].perturbed, expected[0]) and close(states[-1].output, expected[1])
    assert close(states[-2].pullback, expected[2])
    assert close(numpy.stack([step.score for step in states]), expected[3])


def test_defaults_are_the_bundles(session, photos):
    cotangent = session.one_hot([1, 2, 3])
    whole = session.ascent(photos, cotangent)
    assert whole.score.shape == (6, 3)
    assert close(whole.perturbed, Tiny().ascent(photos, cotangent, 5, 2.0, 4.0)[0])
    assert len(list(session.steps(photos, cotangent))) == 6


def test_energy_takes_no_cotangent(bundles, photos):
    energy = load(bundles / "energy")
    states = list(energy.steps(photos, steps=2))
    assert close(numpy.stack([step.score for step in states]), energy.ascent(photos, steps=2).score)
    assert close(states[0].score, 0.5 * (states[0].output.astype(float) ** 2).sum(axis=1))
    with pytest.raises(SurgeonError, match="no use for 'cotangent'"):
        energy.ascent(photos, energy.one_hot([0, 0, 0]))


def test_score_of_a_distribution(bundles, photos):
    entropy = load(bundles / "cross-entropy")
    output = numpy.array([[1.0, 2.0, 0.0, 0.0, 0.0]], numpy.float32)
    mixed = numpy.array([[0.5, 0.5, 0, 0, 0]], numpy.float32)
    expected = 1.5 - math.log(math.exp(1) + math.exp(2) + 3)
    assert entropy.score(output, mixed) == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 1e-60}, "temperature is 1e-60"),  # zero, as a float32
        ({"temperature": "0.3"}, "not a number"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": True}, "not a number"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"radius": 0}, "radius is 0"),
        ({"radius": math.nan}, "radius is nan"),
    ],
)
def test_senseless_settings_are_named(session, photos, change, words):
    cotangent = session.one_hot([0, 0, 0])
    with pytest.raises(SurgeonError, match=words):
        session.ascent(photos, cotangent, **change)
    with pytest.raises(SurgeonError, match=words):
        list(session.steps(photos, cotangent, **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.astype(numpy.float64), "dtype float64, not float32"),
        (lambda x: (x * 255).astype(numpy.uint8), "dtype uint8"),
        (lambda x: x[0], r"shape \[3, 8, 8\], not \[N, 3, 8, 8\]"),
        (lambda x: x[:, :, :7], r"shape \[3, 3, 7, 8\]"),
        (lambda x: x[:0], r"shape \[0, 3, 8, 8\]"),
        (lambda x: x[:2], "a batch of 3, and the input has 2"),
        (lambda x: numpy.where(x > 0, numpy.nan, x).astype(numpy.float32), "not finite"),
        (lambda x: x.tolist(), "is a list"),
    ],
)
def test_a_wrong_input_is_named(session, photos, change, words):
    with pytest.raises(SurgeonError, match=words):
        session.pullback(change(photos), session.one_hot([0, 0, 0]))


def test_a_wrong_cotangent_is_named(session, photos):
    with pytest.raises(SurgeonError, match=r"cotangent has shape \[3, 4\], not \[N, 5\]"):
        session.pullback(photos, numpy.zeros((3, 4), numpy.float32))
    with pytest.raises(SurgeonError, match="needs the input 'cotangent'"):
        session.ascent(photos)
    with pytest.raises(SurgeonError, match="no class 5"):
        session.one_hot([0, 5])


@pytest.mark.parametrize(
    ("text", "index"),
    [("3", 3), (" 0 ", 0), ("goldfish", 1), ("Tinca TINCA", 0), ("tench, tinca tinca", 0), ("gold", 1), ("shark", 3)],
)
def test_a_class_is_found_by_any_of_its_names(session, text, index):
    assert session.target(text) == index
    assert session.label(index) == LABELS[index]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiger", "2 classes: 2 tiger cat, 3 tiger shark"),
        ("goldfsh", "no class is named 'goldfsh'. The nearest are: 1 goldfish"),
        ("zzz", "no class is named 'zzz'"),
        ("", "no class is named ''"),
        ("5", "no class 5. The classes are 0 to 4"),
        ("-1", "no class -1"),
    ],
)
def test_an_unknown_class_is_named(session, text, words):
    with pytest.raises(SurgeonError) as caught:
        session.target(text)
    assert words in str(caught.value)


def test_no_provider_is_taken_for_another(bundles, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="'cuda' is not there") as caught:
        load(bundles / "soft", device="cuda")
    assert caught.value.exit_code == 5
    # It may be listed and yet not load: what the session says counts.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, providers, **_: real(path, providers=["CPUExecutionProvider"]),
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    session = load(bundles / "soft", device="cuda")
    with pytest.raises(ProviderError, match="'cuda' is not there"):
        session.pullback(numpy.zeros((1, 3, 8, 8), numpy.float32), session.one_hot(0))


def test_unknown_device_and_threads(bundles):
    with pytest.raises(SurgeonError, match="no device 'tpu'"):
        load(bundles / "soft", device="tpu")
    with pytest.raises(SurgeonError, match="threads is 0"):
        load(bundles / "soft", threads=0)


def test_loading_says_nothing(bundles, photos, capfd):
    session = load(bundles / "soft")
    session.ascent(photos, session.one_hot([0, 0, 0]), steps=1)
    assert capfd.readouterr() == ("", "")


def test_probabilities():
    output = numpy.array([1000.0, 1000.0, -1000.0], numpy.float32)
    assert softmax(output) == pytest.approx([0.5, 0.5, 0])
    assert top(numpy.array([0.0, math.log(3)]), 5) == [(1, pytest.approx(0.75)), (0, pytest.approx(0.25))]


def test_public_names(bundles):
    assert surgeon.load(bundles / "soft").classes == CLASSES
    assert surgeon.SurgeonError is SurgeonError
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        surgeon.loda  # noqa: B018
