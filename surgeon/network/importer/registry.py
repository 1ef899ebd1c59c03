"""The tables of ONNX operators: on tensors, and on numbers known at capture."""

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
"""A small value known at capture, such as a shape: Python numbers, or symbols for sizes that depend on the batch (its
dtype is object then)."""

Value = Tensor | Numbers
"""Numbers if they are known, else a tensor."""


@dataclass(frozen=True)
class Context:
    """Facts beside inputs and attributes that an operator depends on."""

    opset: int
    outputs: int  # number of the node's outputs
    batch: Any  # rows of the network's input, an integer or a symbol
    fixed: int | None  # the batch that the file fixes; None where it is free
    dtype: torch.dtype  # the precision that the network runs in


@dataclass(frozen=True)
class ImportRule:
    """A function of a node's inputs, by position, and of its attributes, by name."""

    call: Callable[..., Any]
    takes: tuple[type, ...]  # type of each input: Tensor, Numbers (as np.ndarray), or either (object)
    variadic: bool
    attributes: frozenset[str]
    contextual: bool


STANDARD = ("", "ai.onnx")
"""Both names of ONNX's own domain."""

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

    Operators of other domains than ONNX's own are called "domain::operator". The function's positional parameters are
    the node's inputs, None for an omitted one: tensors, or Numbers or Value if annotated so. Its keyword parameters are
    the supported attributes, under their ONNX names; a node with another attribute is refused. A keyword parameter
    `context` receives the Context. It returns a tensor, Numbers, or a tuple for several outputs.
    """
    return _register(OPERATORS, names)


def folded(*names: str) -> Decorator:
    """Register the decorated function for nodes whose inputs are all known: it takes and returns Numbers.

    It may return NotImplemented; the operator of that name then computes with tensors.
    """
    return _register(FOLDED, names)


def _register(table: dict[str, ImportRule], names: tuple[str, ...]) -> Decorator:
    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(call).parameters.values()
        inputs = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
        keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        entry = ImportRule(
            call,
            tuple(_input_type(str(parameter.annotation)) for parameter in inputs),
            any(parameter.kind is parameter.VAR_POSITIONAL for parameter in inputs),
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
    """The operator's name, with its domain in front if that is not ONNX's own."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"


def _input_type(annotation: str) -> type:
    return np.ndarray if "Numbers" in annotation else object if "Value" in annotation else Tensor


def as_tensor(numbers: Numbers, dtype: torch.dtype) -> Tensor:
    """`numbers` as a tensor: floating-point ones of `dtype`, integers as int64."""
    flat = numbers.reshape(-1).tolist()
    if any(isinstance(number, (torch.SymInt, torch.SymFloat)) for number in flat):
        return torch.stack([torch.scalar_tensor(number) for number in flat]).reshape(numbers.shape)
    floating = numbers.dtype.kind == "f" or any(isinstance(number, float) for number in flat)
    kind = dtype if floating else torch.bool if flat and isinstance(flat[0], bool) else torch.int64
    return torch.tensor(flat, dtype=kind).reshape(numbers.shape)


def given(numbers: Numbers | None, attribute: Sequence[int] | None) -> list[Any] | None:
    """The numbers of an input, or of an attribute in older opsets; None where both are missing."""
    if numbers is not None:
        return numbers.reshape(-1).tolist()
    return None if attribute is None else list(attribute)


def required(numbers: Numbers | None, attribute: Sequence[int] | None) -> list[Any]:
    """As `given`; raises ConversionError where both are missing."""
    values = given(numbers, attribute)
    if values is None:
        raise ConversionError("an input that it needs is missing", "Mend the file")
    return values
