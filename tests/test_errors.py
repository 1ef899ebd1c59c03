"""Refusals: an exception without a message is reported by its class, and never becomes a traceback."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.analysis.inspect.convertibility import check
from surgeon.conversion.capture.capture import capture
from surgeon.errors import ConversionError, SurgeonError, first_line, named_line
from surgeon.network.importer.onnx_file import import_onnx
from surgeon.network.importer.registry import OPERATORS
from surgeon.network.sources import resolve
from tests.onnx_nodes import model_of, n, saved, x


@pytest.mark.parametrize(
    ("message", "line", "named"),
    [
        ("", "ValueError", "ValueError"),
        (" \n\t\n", "ValueError", "ValueError"),
        ("\n no such size. \nand more", "no such size", "ValueError: no such size"),
    ],
)
def test_the_first_line_of_an_exception(message: str, line: str, named: str) -> None:
    assert first_line(ValueError(message)) == line
    assert named_line(ValueError(message)) == named


class Silent(nn.Module):
    """Raises without a word, at once or only while it is recorded."""

    input_shape = (3,)

    def __init__(self, kind: type[Exception], recorded: bool) -> None:
        super().__init__()
        self.kind, self.recorded, self.norm = kind, recorded, nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorded or torch.compiler.is_exporting():
            raise self.kind("")
        return self.norm(x)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_network_that_raises_without_a_message_is_refused(kind: type[Exception], recorded: bool) -> None:
    module, x = Silent(kind, recorded).eval(), torch.zeros(2, 3)
    refusal = rf"test_errors.py:\d+ \({kind.__name__}\)"
    for attempt in (capture, surgeon.rewrite):
        with pytest.raises(ConversionError if recorded else SurgeonError, match=refusal):
            attempt(module, x)
    if recorded:
        report = check(module, x)
        assert report.refusal is not None and f"({kind.__name__})" in report.refusal.message
    else:
        with pytest.raises(SurgeonError, match=refusal):
            check(module, x)
        with pytest.raises(SurgeonError, match=r"does not take an input of \(3,\) \("):
            resolve(module, weights="random")


def test_a_factory_that_raises_without_a_message_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "silent_factory.py").write_text("def make():\n    raise RuntimeError\n", encoding="utf-8")
    (tmp_path / "silent_module.py").write_text("raise AssertionError\n", encoding="utf-8")
    with pytest.raises(SurgeonError, match=r"calling silent_factory:make failed \(RuntimeError\)"):
        resolve("silent_factory:make")
    with pytest.raises(SurgeonError, match=r"importing silent_module failed \(AssertionError\)"):
        resolve("silent_module:make")


def test_an_operator_of_a_file_that_raises_without_a_message_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    path = saved(model_of("Relu", n(x(2, 3))), tmp_path)
    monkeypatch.setitem(OPERATORS, "Relu", dataclasses.replace(OPERATORS["Relu"], call=fail))
    with pytest.raises(ConversionError, match=r"Relu .* cannot be computed \(AssertionError\)"):
        import_onnx(path)
