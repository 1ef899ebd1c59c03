"""What every file of one bundle is written from, beside the recorded programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.bundle.manifest import Recipe


@dataclass(frozen=True)
class Plan:
    """Recipe, defaults and names for the writers.

    `input_defaults` are those of `Manifest.input_defaults`; every step clamps images to `value_range`; `facts`, JSON,
    goes into each ONNX file; `extra_inputs` and `gate_outputs` name a program's last inputs (those of the network
    beside the differentiated one) and the outputs of gates.onnx.
    """

    recipe: Recipe
    input_defaults: Mapping[str, Any]
    value_range: tuple[float, float]
    facts: str = "{}"
    extra_inputs: tuple[str, ...] = ()
    gate_outputs: tuple[str, ...] = ()

    @property
    def onnx_defaults(self) -> Mapping[str, Any]:
        """The inputs that have a default in ONNX files."""
        return {} if self.recipe.scalars == "required" else self.input_defaults

    @property
    def keeps_blocked(self) -> bool:
        """Whether graphs are written for the CPU's blocked layout."""
        return self.recipe.layout != "plain" and self.recipe.precision == "fp32"
