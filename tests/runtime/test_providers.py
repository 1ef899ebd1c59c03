"""Devices, and options for ONNX Runtime's providers."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest

from surgeon import cli
from surgeon.cli import options
from surgeon.errors import OptionError, ProviderError, SurgeonError
from surgeon.runtime.binding import bind
from surgeon.runtime.providers import CPU, DEVICES, Device, open_session
from surgeon.runtime.session import load
from surgeon.verify.verify import verify
from tests import cuda_graphs
from tests.digits import digits
from tests.tiny_bundle import write_tiny


def test_options_come_on_top_of_ours() -> None:
    assert CPU.options == {} and Device("cuda").options == {"use_tf32": "0"}
    given = Device("cuda", {"use_tf32": True, "device_id": 1})
    assert given.options == {"use_tf32": "True", "device_id": "1"}
    assert Device("tensorrt", {"trt_fp16_enable": 1}).chain == {
        "TensorrtExecutionProvider": {"trt_fp16_enable": "1"},
        "CUDAExecutionProvider": {"use_tf32": "0"},
    }


@pytest.mark.parametrize("on", ["1", 1, True, "true"])
def test_what_options_mean(on: object) -> None:
    assert Device("cuda", {"use_tf32": on}).tf32 and not Device("cuda").tf32
    graphs = Device("cuda", {"enable_cuda_graph": on, "prefer_nhwc": "1"})
    assert graphs.captures and not Device("cuda", {"enable_cuda_graph": "0"}).captures
    assert graphs.uncaptured == Device("cuda", {"prefer_nhwc": "1"})


def test_one_of_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Device("cuda", {"device_id": told}).index for told in (1, "2", "x")] == [1, 2, 0]
    seen = []
    monkeypatch.setattr(
        "surgeon.runtime.binding.DeviceSession.__init__", lambda self, session, *place: seen.append(place)
    )
    bind(object(), Device("cuda", {"device_id": 1, "enable_cuda_graph": 1}))
    assert seen == [("cuda", 1, True)]


def test_tensorrt_keeps_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert Device("tensorrt").tf32
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not Device("tensorrt").tf32


def test_the_command_line_knows_every_device() -> None:
    @options.device
    def command() -> None: ...

    assert tuple(command.__click_params__[0].type.choices) == DEVICES


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


def test_the_cpu_takes_none(bundle: Path) -> None:
    with pytest.raises(OptionError, match="the CPU provider takes no options, and use_tf32 was given"):
        load(bundle, provider_options={"use_tf32": "1"})


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            '/a/b.cc:63 f() [ONNXRuntimeError] : 1 : FAIL : c.h:18 Parse Unknown provider option: "x".',
            "x=1 (Unknown pro",
        ),
        (
            'c.h:187 Parse Failed to parse provider option "x": d.h:116 Failed to parse value: "1"',
            'provider option "x")',
        ),
    ],
)
def test_a_wrong_option_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch, told: str, said: str) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError(told)

    cuda_graphs.pretend(monkeypatch)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refused)
    with pytest.raises(OptionError) as caught:
        open_session(bundle / "pullback.onnx", Device(cuda_graphs.GPU, {"x": 1}), 1)
    assert said in caught.value.message and "[ONNXRuntimeError]" not in caught.value.message


@pytest.mark.parametrize("command", ["run", "figure grid", "bench", "verify"])
@pytest.mark.parametrize(
    ("given", "code", "line"),
    [
        (("--provider-option", "use_tf32=1"), 1, "error: the CPU provider takes no options, and use_tf32 was given."),
        (("--provider-option", "use_tf32"), 2, "'use_tf32' is not KEY=VALUE."),
        (("--provider-option", "a=1", "--provider-option", "a=2"), 2, "a is given twice."),
        (("--device", "tensorrt"), 5, "error: the device 'tensorrt' is not there"),
    ],
)
def test_each_command_says_it_in_a_line(
    digits_bundle: Path,
    digit_photo: Path,
    command: str,
    given: tuple[str, ...],
    code: int,
    line: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    root = Path.cwd()
    monkeypatch.syspath_prepend(root)  # verify builds the network again
    monkeypatch.chdir(tmp_path)
    photos = [str(digit_photo)] if command in ("run", "figure grid") else []
    found = cli.invoke([*command.split(), str(digits_bundle), *photos, *given])
    out, err = capfd.readouterr()
    if code == 5 and found == 0:
        pytest.skip("this machine has TensorRT")
    assert found == code and out == ""
    assert line in err and len(err.splitlines()) == 1


def test_a_provider_that_asks_to_be_installed_is_not_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("/a/b.cc:729 void f() Please install TensorRT libraries as mentioned in the page")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refused)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(ProviderError, match="with the CUDA, cuDNN and TensorRT that it needs"):
        open_session(bundle / "pullback.onnx", Device("tensorrt"), 1)
    available.remove("CUDAExecutionProvider")  # what is behind it has to be there as well
    with pytest.raises(ProviderError):
        load(bundle, "tensorrt")


def test_tensorrt_is_not_there_where_cuda_alone_is(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        get_providers = staticmethod(lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(ProviderError, match="'tensorrt' is not there"):
        open_session(bundle / "pullback.onnx", Device("tensorrt"), 1)


def test_verification_under_tf32_says_so(digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_graphs.pretend(monkeypatch)
    lines = verify(digits_bundle, digits(), device=cuda_graphs.GPU, provider_options={"use_tf32": "1"})
    own = [line for line in lines if line.provider != "torch"]
    assert all(line.condition.endswith(", TF32") and line.tolerance == 5e-2 for line in own)
    assert all("TF32" not in line.condition and line.tolerance < 5e-2 for line in lines if line not in own)


def test_verification_sees_what_a_graph_held_on_to(digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cuda_graphs.pretend(monkeypatch)
    asked = {"device": cuda_graphs.GPU, "provider_options": {"enable_cuda_graph": "1"}}
    lines = verify(digits_bundle, digits(), **asked)
    assert all(line.passed for line in lines)
    assert len(made) == 2 and all(session.captured for session in made)
    loops = [line for line in lines if line.artifact == "ascent.onnx"]
    assert loops and all(line.condition.endswith(", no graph") for line in loops)
    # A scalar that is copied at the capture, and never read again, as a kernel on the CPU would have it.
    real = onnxruntime.OrtValue.update_inplace

    def held(self: onnxruntime.OrtValue, value: object) -> None:
        if value.ndim or not getattr(self, "held", False):
            real(self, value)
        self.held = True

    monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", held)
    wrong = [line for line in verify(digits_bundle, digits(), **asked) if not line.passed]
    assert {line.artifact for line in wrong} == {"pullback.onnx", "ascent_step.onnx"}


def test_no_device_of_that_name() -> None:
    with pytest.raises(SurgeonError, match="Choose one of cpu, cuda, tensorrt"):
        Device("tpu")


@pytest.mark.parametrize("command", ["run", "figure grid"])
def test_nodes_on_the_cpu_are_told(
    digits_bundle: Path,
    digit_photo: Path,
    command: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cuda_graphs.pretend(monkeypatch)
    monkeypatch.setattr("surgeon.runtime.session.load", lambda bundle, *_: load(bundle, cuda_graphs.GPU))
    output = tmp_path / ("figure.png" if command == "figure grid" else "pictures")
    assert cli.invoke([*command.split(), str(digits_bundle), str(digit_photo), "-o", str(output), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)
    (line,) = [line for line in err.splitlines() if line.startswith("ascent_step.onnx: ")]
    assert " nodes run on the CPU: " in line and line.endswith(", …")
