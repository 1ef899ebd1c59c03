"""Users' modules: copies of them, kinds that cannot be captured, inputs that they do not take, evaluation mode."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.parameter import is_lazy

from surgeon.errors import ConversionError, SurgeonError
from surgeon.network.inputs import Example, tensors
from surgeon.network.wrapping import source_name

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.quantization.fake_quantize")
_CASTS = {torch.float32: "float", torch.float64: "double", torch.float16: "half", torch.bfloat16: "bfloat16"}
_BEFORE = "Give the network as it was before it was quantised"


def copied(module: nn.Module) -> nn.Module:
    """A deep copy in which tensors computed with a gradient, as the older weight_norm's, are plain tensors."""
    values = [value for part in module.modules() for value in vars(part).values()]
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})


def require_capturable(module: nn.Module) -> None:
    """Raise ConversionError where `module` or one inside is compiled, has no parameters yet, or rounds."""
    for name, part in module.named_modules():
        kind = getattr(part, "original_name", type(part).__name__)  # TorchScript's own classes have no telling name
        what = f"the network's module {source_name(name)} ({kind})" if source_name(name) else f"the network ({kind})"
        if isinstance(part, torch.jit.ScriptModule):
            raise ConversionError(
                f"{what} is TorchScript", "Give the Python module that it was scripted or traced from"
            )
        values = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(map(is_lazy, values)):
            raise ConversionError(f"{what} has parameters without a shape yet", "Run it once on an input")
        rounds = any(kind.__module__.startswith(_QUANTISED) for kind in type(part).__mro__)
        if rounds and not isinstance(part, FloatFunctional):  # unquantised, it computes real sums
            raise ConversionError(f"{what} rounds to whole numbers, which have no gradient", _BEFORE)


@contextmanager
def explaining_inputs(module: nn.Module, example: Example) -> Iterator[None]:
    """Where the network does not take `example`, raise SurgeonError with what it takes, as far as can be known."""
    try:
        yield
    except SurgeonError as error:
        if type(error) is SurgeonError and error.__cause__ is not None:
            _require_dtype(module, tensors(example)[0].dtype)
            _require_tensor(module)
        raise


def _require_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    dtypes = {value.dtype for value in module.parameters() if value.is_floating_point()}
    if dtypes and dtype not in dtypes:
        names = " and ".join(sorted(str(name).removeprefix("torch.") for name in dtypes))
        raise SurgeonError(f"the network's parameters are {names}", f"Call .{_CASTS.get(dtype, 'to')}() on it first")


def _require_tensor(module: nn.Module) -> None:
    """Raise ConversionError where the forward takes a dict or a list, recognised by how it fails on an empty one."""
    wanted: list[tuple[Any, tuple[type[Exception], ...], str]] = [
        ((), (IndexError, ValueError), "a list or tuple"),
        ({}, (KeyError,), "a dict"),
    ]
    for empty, failures, what in wanted:
        try:
            with torch.no_grad():
                module(empty)
        except failures as error:
            if isinstance(error, ValueError) and "values to unpack" not in str(error):
                continue
            key = f" with {error}" if isinstance(error, KeyError) else ""
            raise ConversionError(
                f"the network takes {what}{key}, and not a tensor", "Wrap it in a module that takes tensors alone"
            ) from error
        except Exception:  # the user's code takes something else
            continue


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards each submodule has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def silent_torch() -> Iterator[None]:
    """Hide torch.export's log, its warnings about itself, and the graphs that it prints on failure.

    Its exceptions carry all that a user needs.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # torch 2.11 raises these against its own code; where warnings are errors, recording and loading would fail.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # weights of a .pt2
            yield
    finally:
        logger.setLevel(level)
