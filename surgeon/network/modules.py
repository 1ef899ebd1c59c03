"""Modules as they are handed in: copies of them, kinds that cannot be captured, and inputs that they do not take."""

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
    """A deep copy, in which what was computed with a gradient, as by the older weight_norm, is a tensor like others."""
    values = [value for part in module.modules() for value in vars(part).values()]
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})


def require_capturable(module: nn.Module) -> None:
    """Raise ConversionError where `module` or one inside is compiled, has no parameters yet, or rounds."""
    for name, part in module.named_modules():
        kind = getattr(part, "original_name", type(part).__name__)  # TorchScript's own classes say nothing
        what = f"the network's module {source_name(name)} ({kind})" if source_name(name) else f"the network ({kind})"
        if isinstance(part, torch.jit.ScriptModule):
            raise ConversionError(
                f"{what} is TorchScript", "Give the Python module that it was scripted or traced from"
            )
        values = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(map(is_lazy, values)):
            raise ConversionError(f"{what} has parameters without a shape yet", "Run it once on an input")
        rounds = any(kind.__module__.startswith(_QUANTISED) for kind in type(part).__mro__)
        if rounds and not isinstance(part, FloatFunctional):  # whose sums are those of real numbers
            raise ConversionError(f"{what} rounds to whole numbers, which have no gradient", _BEFORE)


@contextmanager
def explaining_inputs(module: nn.Module, example: Example) -> Iterator[None]:
    """Where the network turns out not to take `example`, say what it takes, as far as can be known: SurgeonError."""
    try:
        yield
    except SurgeonError as error:
        if type(error) is SurgeonError and error.__cause__ is not None:
            _require_dtype(module, tensors(example)[0].dtype)
            _require_tensor(module)
        raise


def _require_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    own = {value.dtype for value in module.parameters() if value.is_floating_point()}
    if own and dtype not in own:
        names = " and ".join(sorted(str(one).removeprefix("torch.") for one in own))
        raise SurgeonError(f"the network's parameters are {names}", f"Call .{_CASTS.get(dtype, 'to')}() on it first")


def _require_tensor(module: nn.Module) -> None:
    """Raise ConversionError where what the forward wants is a dict or a row: empty ones tell by how they fail."""
    wanted: list[tuple[Any, tuple[type[Exception], ...], str]] = [
        ((), (IndexError, ValueError), "a list or tuple"),
        ({}, (KeyError,), "a dict"),
    ]
    for given, failures, what in wanted:
        try:
            with torch.no_grad():
                module(given)
        except failures as error:
            if isinstance(error, ValueError) and "values to unpack" not in str(error):
                continue
            key = f" with {error}" if isinstance(error, KeyError) else ""
            raise ConversionError(
                f"the network takes {what}{key}, and not a tensor", "Wrap it in a module that takes tensors alone"
            ) from error
        except Exception:  # of the user's code, which wants something else
            continue


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; afterwards each submodule has its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def silent_torch() -> Iterator[None]:
    """Keep torch.export's log, its warnings of itself, and the graphs that it prints on failure off the screen.

    Its exception says it all.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # Of what torch 2.11 does by itself; where warnings are errors, nothing could be recorded or loaded.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # weights of a .pt2
            yield
    finally:
        logger.setLevel(level)
