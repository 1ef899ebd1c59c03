"""Refuses custom autograd Functions whose backward is not the derivative of their forward.

The captured graph holds what the forward computes, and its pullback is the derivative of that. A straight-through
estimator or a gradient reversal is meant to have another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import ConversionError, SurgeonError, first_line
from surgeon.network.call_patching import Kind, each, gradients, has_setup, kinds, replaced, run_forward

REMEDY = "Write its forward in plain operations, whose derivative is the one that is meant"

SPREADS = (1e-2, 1.0, 10.0)
"""Distances from the example's values at which derivatives are compared: zeros alone would lie on corners."""

Called = dict[Kind, tuple[Any, ...]]
"""Arguments of the first call by Function. Tensors that require a gradient depend on the network's input."""


@contextmanager
def called_functions() -> Iterator[Called]:
    """Record the Functions that are called inside the context; yields the record."""
    called: Called = {}
    with contextlib.ExitStack() as stack:
        for kind, forward in [(kind, _recording(kind, called)) for kind in kinds()]:
            stack.enter_context(replaced(kind, "forward", staticmethod(forward)))
        yield called


def require_own_derivatives(module: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raise ConversionError if a Function that `module` calls on `examples` has a derivative of its own."""
    first, *others = (example.clone() for example in examples)
    with called_functions() as called, torch.enable_grad():
        try:
            module(first.requires_grad_(True).clone(), *others)
        except Exception as error:  # whatever the user's code raises
            raise ConversionError(f"the network does not run under autograd ({first_line(error)})", REMEDY) from error
    for kind, args in called.items():
        try:
            alike = all(_agree(kind, args, spread) for spread in SPREADS)
        except SurgeonError as error:
            raise ConversionError(error.message, error.remedy) from error
        except Exception as error:
            raise ConversionError(
                f"the autograd Function {kind.__name__} cannot be compared with its derivative ({first_line(error)})",
                REMEDY,
            ) from error
        if not alike:
            raise ConversionError(
                f"the backward of the autograd Function {kind.__name__} is not the derivative of its forward", REMEDY
            )


def _recording(kind: Kind, called: Called) -> Callable[..., Any]:
    original = kind.forward

    def forward(*args: Any) -> Any:
        inputs = args if has_setup(kind) else args[1:]
        called.setdefault(kind, tuple(_copied(arg) for arg in inputs))
        return original(*args)

    return forward


def _copied(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return arg.detach().clone().requires_grad_(arg.requires_grad and not isinstance(arg, nn.Parameter))


def _agree(kind: Kind, args: tuple[Any, ...], spread: float) -> bool:
    """Whether backward and derivative agree near `args`, in double precision if the Function supports it."""
    try:
        return _compare(kind, args, spread, torch.float64, 1e-6)
    except RuntimeError:  # weights that are no arguments have another precision
        return _compare(kind, args, spread, None, 1e-3)


def _compare(kind: Kind, args: tuple[Any, ...], spread: float, dtype: torch.dtype | None, tolerance: float) -> bool:
    generator = torch.Generator().manual_seed(0)

    def near(arg: Any) -> Any:
        if not isinstance(arg, Tensor) or not arg.is_floating_point():
            return arg
        value = arg.detach().to(dtype or arg.dtype)
        if arg.requires_grad:
            value = value + spread * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value.requires_grad_(arg.requires_grad)

    def cotangent(output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        return torch.randn(output.shape, generator=generator, dtype=output.dtype)

    leaves = [near(arg) for arg in args]
    with torch.enable_grad():
        # Clones, since a Function may work in place, which autograd refuses on a leaf.
        returned = kind.apply(*(leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves))
    cotangents = tuple(map(cotangent, each(returned)))
    actual = gradients(leaves, returned, cotangents)
    copies, plain = run_forward(kind, kind.forward, tuple(leaves))
    derivative = gradients(copies, plain, cotangents)
    return all(_close(*pair, tolerance) for pair in zip(actual, derivative, strict=True))


def _close(gradient: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    """Whether two gradients are equal within `tolerance`; a missing gradient is zero."""
    if gradient is None or expected is None:
        present = expected if gradient is None else gradient
        return present is None or not present.any()
    scale = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
    return torch.allclose(gradient, expected, tolerance, tolerance * scale, equal_nan=True)
