"""`make gpu-check` where there is no GPU: on the CPU, taken for one whose graphs keep the rules."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests import cuda_graphs, gpu_check
from tests.gpu_check import Variant

TINY = "tests.tiny_network:tiny"


def test_a_variant_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cuda_graphs.pretend(monkeypatch)
    real = gpu_check.measured

    def measured(network, path, source, variant, *arguments):
        if variant.name == "broken":
            raise RuntimeError("out of memory\nat such a place")
        return real(network, path, source, variant, *arguments)

    monkeypatch.setattr(gpu_check, "measured", measured)
    graphs = Variant("graphs", "fp32", {"enable_cuda_graph": "1"})
    monkeypatch.setattr(gpu_check, "VARIANTS", (Variant("broken", "fp32", {}), graphs))
    result = CliRunner().invoke(gpu_check.main, [TINY, "--device", cuda_graphs.GPU, "--batch", "1", "--repeats", "2"])
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    assert [line.split("│")[4].strip() for line in lines if "│ broken" in line] == ["failed"]
    assert f"{TINY}, broken: out of memory" in result.output and "at such a place" not in result.output
    (row,) = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│ graphs" in line]
    loop, steps, off = row[7], row[8], row[12]
    assert loop == "" and float(steps) > 0
    assert int(off) > 0  # it is the CPU, after all
    assert made and all(session.captured for session in made)


def test_on_the_cpu_it_takes_what_makes_sense_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def check(network, precision, variants, *_):
        seen.extend(variant.name for variant in variants)
        return []

    monkeypatch.setattr(gpu_check, "check", check)
    assert CliRunner().invoke(gpu_check.main, ["resnet18", "--device", "cpu"]).exit_code == 0
    assert seen == ["fp32", "fp16"]


def test_a_walk_that_goes_astray_is_told(digits_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_graphs.pretend(monkeypatch)
    graphs = Variant("graphs", "fp32", {"enable_cuda_graph": "1"})
    gpu_check.repeater(digits_bundle, graphs, cuda_graphs.GPU, 2)
    monkeypatch.setattr("surgeon.runtime.binding._STATE", "origin")
    with pytest.raises(gpu_check.SurgeonError, match="lead elsewhere"):
        gpu_check.repeater(digits_bundle, graphs, cuda_graphs.GPU, 2)


def test_without_the_provider_it_ends_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    result = CliRunner().invoke(gpu_check.main, [TINY, "--device", "cuda"])
    assert result.exit_code == 5
    assert "the device 'cuda' is not there" in result.output
