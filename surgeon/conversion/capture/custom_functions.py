"""Custom autograd Functions whose backward is not the derivative of their forward: noticed, and refused by name.

The captured graph holds what a forward computes, and its pullback is the derivative of that. A straight-through
estimator or a gradient reversal means something else.
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
"""The derivatives are compared this far around the values at hand, which may be zeros, where functions have corners."""

Called = dict[Kind, tuple[Any, ...]]
"""By kind: what the first call was given. Tensors that require a gradient depend on the network's input."""


@contextmanager
def noted() -> Iterator[Called]:
    """Yields what will hold each Function that is called meanwhile."""
    called: Called = {}
    with contextlib.ExitStack() as stack:
        for kind, forward in [(kind, _noting(kind, called)) for kind in kinds()]:
            stack.enter_context(replaced(kind, "forward", staticmethod(forward)))
        yield called


def require_own_derivatives(module: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raise ConversionError for a Function in the network, as called on `examples`, with a derivative of its own."""
    first, *others = (example.clone() for example in examples)
    with noted() as called, torch.enable_grad():
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


def _noting(kind: Kind, called: Called) -> Callable[..., Any]:
    own = kind.forward

    def forward(*args: Any) -> Any:
        given = args if has_setup(kind) else args[1:]
        called.setdefault(kind, tuple(_copied(arg) for arg in given))
        return own(*args)

    return forward


def _copied(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return arg.detach().clone().requires_grad_(arg.requires_grad and not isinstance(arg, nn.Parameter))


def _agree(kind: Kind, args: tuple[Any, ...], spread: float) -> bool:
    """Whether backward and derivative agree near `args`: in double precision, if the Function computes in it."""
    try:
        return _compare(kind, args, spread, torch.float64, 1e-6)
    except RuntimeError:  # weights that it does not get as arguments have another precision
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
        # The clones are for what works in place, which autograd refuses on a leaf.
        returned = kind.apply(*(leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves))
    cotangents = tuple(map(cotangent, each(returned)))
    found = gradients(leaves, returned, cotangents)
    copies, plain = run_forward(kind, kind.forward, tuple(leaves))
    expected = gradients(copies, plain, cotangents)
    return all(_close(*pair, tolerance) for pair in zip(found, expected, strict=True))


def _close(found: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    """Whether two gradients are the same, one that is not there being zeros."""
    if found is None or expected is None:
        there = found if found is not None else expected
        return there is None or not there.any()
    scale = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
    return torch.allclose(found, expected, tolerance, tolerance * scale, equal_nan=True)
