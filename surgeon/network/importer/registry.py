"""The table of ONNX operators, and the one of those that also compute with numbers known beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from surgeon.errors import ConversionError

Numbers = np.ndarray[Any, np.dtype[Any]]
"""A small value that is known while the network is captured, such as a shape: Python numbers, or symbols for those that
depend on the batch (its dtype is object then)."""

Value = Tensor | Numbers
"""Numbers where they are known, and a tensor otherwise."""


@dataclass(frozen=True)
class Context:
    """What a node's meaning depends on besides its inputs and attributes."""

    opset: int
    outputs: int  # how many the node has
    batch: Any  # rows of the network's input, an integer or a symbol
    fixed: int | None  # the batch that the file is written for; None where it is free
    dtype: torch.dtype  # the precision that the network runs in


@dataclass(frozen=True)
class ImportRule:
    """A function of a node's inputs, by position, and of its attributes, by name."""

    call: Callable[..., Any]
    takes: tuple[type, ...]  # what each input is given as: Tensor, Numbers (as np.ndarray), or either (object)
    variadic: bool
    attributes: frozenset[str]
    contextual: bool


STANDARD = ("", "ai.onnx")
"""ONNX's own domain, by both of its names."""

FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

OPERATORS: dict[str, ImportRule] = {}
FOLDED: dict[str, ImportRule] = {}
REFUSED: dict[str, str] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent"),
    **dict.fromkeys(("Loop", "Scan"), "a loop"),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
        "rounds to whole numbers, which have no gradient",
    ),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), "of whole numbers, which have no gradient"),
    **dict.fromkeys(("NonMaxSuppression", "Unique", "Compress"), "its result's size depends on the data"),
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"), "random"
    ),
}
"""Why some operators are refused."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def operator(*names: str) -> Decorator:
    """Register the decorated function for the ONNX operators `names`; registering one twice raises ValueError.

    Those of other domains than ONNX's own are called "domain::operator". Its positional parameters are the node's
    inputs, None where one is left out: tensors, or what is annotated as Numbers or Value. Its keyword parameters are
    the attributes that it knows, under their ONNX names; a node with another one is refused. `context` is given where
    it is asked for. It returns a tensor, Numbers, or a tuple for several outputs.
    """
    return _register(OPERATORS, names)


def folded(*names: str) -> Decorator:
    """Register the decorated function for nodes whose inputs are all known: it takes and returns Numbers.

    It may return NotImplemented, for what is left to the operator of that name on tensors.
    """
    return _register(FOLDED, names)


def _register(table: dict[str, ImportRule], names: tuple[str, ...]) -> Decorator:
    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(call).parameters.values()
        inputs = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]
        keywords = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
        entry = ImportRule(
            call,
            tuple(_taken(str(one.annotation)) for one in inputs),
            any(one.kind is one.VAR_POSITIONAL for one in inputs),
            frozenset(keywords - {"context"}),
            "context" in keywords,
        )
        for name in names:
            if name in table:
                raise ValueError(f"{name} is registered already: {table[name].call.__qualname__}")
            table[name] = entry
        return call

    return register


def kind_of(node: NodeProto) -> str:
    """The operator's name, behind its domain where that is not ONNX's own."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"


def _taken(annotation: str) -> type:
    return np.ndarray if "Numbers" in annotation else object if "Value" in annotation else Tensor


def as_tensor(numbers: Numbers, dtype: torch.dtype) -> Tensor:
    """`numbers` as a tensor: of `dtype` where they are floating-point, whole numbers as int64."""
    flat = numbers.reshape(-1).tolist()
    if any(isinstance(number, (torch.SymInt, torch.SymFloat)) for number in flat):
        return torch.stack([torch.scalar_tensor(number) for number in flat]).reshape(numbers.shape)
    floating = numbers.dtype.kind == "f" or any(isinstance(number, float) for number in flat)
    kind = dtype if floating else torch.bool if flat and isinstance(flat[0], bool) else torch.int64
    return torch.tensor(flat, dtype=kind).reshape(numbers.shape)


def given(numbers: Numbers | None, attribute: Sequence[int] | None) -> list[Any] | None:
    """What is an input in newer opsets and an attribute in older ones; None where it is neither."""
    if numbers is not None:
        return numbers.reshape(-1).tolist()
    return None if attribute is None else list(attribute)


def required(numbers: Numbers | None, attribute: Sequence[int] | None) -> list[Any]:
    """The same, where the operator cannot do without."""
    found = given(numbers, attribute)
    if found is None:
        raise ConversionError("an input that it needs is missing", "Mend the file")
    return found
