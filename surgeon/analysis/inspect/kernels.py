"""Whether ONNX Runtime's execution providers have kernels for the operators of a graph. Torch-free; no session."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping
from typing import Any

import onnx

from surgeon.analysis.inspect.structure import Node

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_Kernels = Mapping[tuple[str, str], list[Any]]


def support(node: Node, opsets: Mapping[str, int], provider: str) -> str | None:
    """Whether `provider`, a key of PROVIDERS, has a kernel for `node`.

    "yes"; "expanded" where ONNX defines the operator by others, which take its place; "no"; None where that cannot be
    known: this ONNX Runtime does not list that provider's kernels, or the operator is not ONNX's own.
    """
    kernels = _kernels(PROVIDERS[provider])
    domain, _, operator = node.operator.rpartition(".")
    if kernels is None or domain:
        return None
    if operator == "Constant":
        return "yes"  # it becomes an initializer as the file is read
    try:
        schema = onnx.defs.get_schema(operator, opsets.get("", 1), "")
    except onnx.defs.SchemaError:
        return None
    types = _types(node, schema)
    if any(_fits(kernel, schema, types) for kernel in kernels.get(("", operator), [])):
        return "yes"
    return "expanded" if getattr(schema, "has_function", False) else "no"


def _fits(kernel: Any, schema: Any, types: Mapping[str, str]) -> bool:
    first, last = kernel.version_range
    if not first <= schema.since_version <= last:
        return False
    allowed = kernel.type_constraints
    return all(name not in allowed or kind in allowed[name] for name, kind in types.items())


def _types(node: Node, schema: Any) -> dict[str, str]:
    """The values of the operator's type variables at `node`, as far as they are known."""
    ends = [*zip(schema.inputs, node.input_types, strict=False), *zip(schema.outputs, node.output_types, strict=False)]
    name, variadic = onnx.TensorProto.DataType.Name, onnx.defs.OpSchema.FormalParameterOption.Variadic
    return {end.type_str: f"tensor({name(kind).lower()})" for end, kind in ends if kind and end.option != variadic}


@functools.cache
def _kernels(provider: str) -> _Kernels | None:
    """The kernels of that provider by operator; None where ONNX Runtime does not list them."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        listed = state.get_registered_ep_kernel_defs(provider)
    except (
        ImportError,
        AttributeError,
        RuntimeError,
    ):  # a recent function, which lists only providers whose devices are present
        return None
    by_operator: dict[tuple[str, str], list[Any]] = collections.defaultdict(list)
    for kernel in listed:
        by_operator[kernel.domain.removeprefix("ai.onnx"), kernel.op_name].append(kernel)
    return by_operator
