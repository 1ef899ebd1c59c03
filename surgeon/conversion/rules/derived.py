"""The VJP of one operator, taken from PyTorch's autograd and recorded as a graph of plain operators.

`torch.func.vjp` is traced by `make_fx` on the fake values that capture left at the node: their batch is symbolic, so
the graph that comes out holds for any batch. It calls no autograd, and can therefore be exported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from surgeon.errors import ConversionError, first_line

COMPOSED: dict[OpOverload, Callable[..., Any]] = {
    torch.ops.aten.grid_sampler_2d.default: decomposition_table[torch.ops.aten.grid_sampler_2d.default],
}
"""Operators whose backward is an operator that ONNX lacks, with their decompositions. The forward pass keeps the
operator."""


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    return dict(core_aten_decompositions())  # a call asks the dispatcher for every operator


@dataclass(frozen=True)
class OperatorCall:
    """A call of `operator` at one node, with the values that capture left there: fake tensors, and symbolic integers.

    `active` marks, in the flattened arguments, the tensors that lead to the network's input, and `outputs` the outputs
    that lead on (None where the operator has a single one).
    """

    operator: OpOverload
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    active: tuple[bool, ...]
    outputs: tuple[int, ...] | None = None

    @property
    def signature(self) -> Hashable:
        """The facts that determine a `DerivedRule`, within one fake mode: calls with equal signatures share a rule."""
        leaves, spec = pytree.tree_flatten((self.arguments, self.keywords))
        described = tuple(
            f"{leaf.dtype} {leaf.shape} {leaf.stride()}" if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
        )
        return self.operator, str(spec), described, self.active, self.outputs


class DerivedRule:
    """The rule of an operator at one node, called like any other rule, with the operator's arguments.

    Raises ConversionError where autograd has no derivative for it.
    """

    def __init__(self, call: OperatorCall) -> None:
        self._operator, self._keywords = call.operator, call.keywords
        self._active, self._outputs = call.active, call.outputs
        leaves, self._spec = pytree.tree_flatten(call.arguments)
        self._varying = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (Tensor, torch.SymInt))]
        self._graph = self._trace(leaves)

    def _trace(self, leaves: list[Any]) -> GraphModule:
        varying = [leaves[i] for i in self._varying]
        try:
            with detect_fake_mode(varying) or nullcontext(), torch.no_grad(), enable_python_dispatcher():
                cotangents = [torch.zeros_like(out) for out in self._select(self._call(leaves))]
                # "real" takes the values as they are, and these are fake; "symbolic" would make every size a symbol.
                traced = make_fx(self._pull(leaves), tracing_mode="real", decomposition_table=_decompositions())
                return traced(cotangents, varying)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise ConversionError(
                f"PyTorch gives no exportable derivative for {self._operator} ({first_line(error)})",
                "Write a rule for it in surgeon/conversion/rules",
            ) from error

    def _call(self, leaves: list[Any]) -> Any:
        operator = COMPOSED.get(self._operator, self._operator)
        return operator(*pytree.tree_unflatten(leaves, self._spec), **self._keywords)

    def _select(self, out: Any) -> list[Tensor]:
        return [out] if self._outputs is None else [out[i] for i in self._outputs]

    def _pull(self, leaves: list[Any]) -> Callable[[list[Tensor], list[Any]], list[Tensor]]:
        """cotangents, tensors and symbolic sizes -> cotangents of the active ones among the tensors."""
        active = [i for i in self._varying if self._active[i]]

        def pull(cotangents: list[Tensor], varying: list[Any]) -> list[Tensor]:
            values = list(leaves)
            for i, value in zip(self._varying, varying, strict=True):
                values[i] = value

            def forward(*inputs: Tensor) -> list[Tensor]:
                arguments = list(values)
                for i, value in zip(active, inputs, strict=True):
                    arguments[i] = value
                return self._select(self._call(arguments))

            vjp = torch.func.vjp(forward, *(values[i] for i in active))[1]
            return list(vjp(cotangents))

        return pull

    def __call__(self, g: Any, out: Any, *arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        leaves, spec = pytree.tree_flatten(arguments)
        outs, gs = self._select(out), [g] if self._outputs is None else [g[i] for i in self._outputs]
        cotangents = [torch.zeros_like(o) if c is None else c for c, o in zip(gs, outs, strict=True)]
        pulled = self._graph(cotangents, [leaves[i] for i in self._varying])
        entries: list[Any] = [None] * len(leaves)
        for i, cotangent in zip([i for i in self._varying if self._active[i]], pulled, strict=True):
            entries[i] = cotangent
        return tuple(pytree.tree_unflatten(entries, spec))
