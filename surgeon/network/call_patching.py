"""Make checkpoints, custom autograd Functions and scripted functions visible to torch function modes.

The patches replace attributes where torch itself looks them up, since a network may hold `MyFunction.apply` or
`checkpoint` under another name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.utils import checkpoint

from surgeon.errors import SurgeonError

Kind = type[Function]


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Run what is under `torch.utils.checkpoint` as plain code: nothing is computed a second time."""

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
            return function(*args)

    def nothing_to_keep(*_: Any, **__: Any) -> Iterator[None]:
        yield

    names = [name for name in vars(checkpoint) if name.startswith("_checkpoint_without_reentrant_generator")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(checkpoint, "CheckpointFunction", Plain))
        for name in names:
            stack.enter_context(replaced(checkpoint, name, nothing_to_keep))
        yield


@contextmanager
def functions_by_their_forward(but: Collection[Kind]) -> Iterator[None]:
    """Autograd differentiates what the forward of each Function computes, except those in `but`, not its backward.

    The Function's node keeps the outputs of that forward as `plain_outputs`. A call of a Function that overwrites its
    input raises SurgeonError.
    """
    with contextlib.ExitStack() as stack:
        for kind, replacements in [(kind, _by_forward(kind)) for kind in kinds() if kind not in but]:
            for name, replacement in replacements.items():
                stack.enter_context(replaced(kind, name, staticmethod(replacement)))
        yield


@contextmanager
def compiled_by_their_original(gates: Collection[str]) -> Iterator[None]:
    """Run the Python function from which torch.jit.script made a scripted one.

    Where that is lost, a call raises SurgeonError if one of the operators `gates` is inside.
    """
    script: Any = torch.jit.ScriptFunction
    compiled = script.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        original = getattr(function, "_torchdynamo_inline", None)
        if original is not None:
            return original(*args, **kwargs)
        inside = {node.kind().rpartition("::")[2].rstrip("_") for node in function.inlined_graph.nodes()}
        if inside.isdisjoint(gates):
            return compiled(function, *args, **kwargs)
        raise SurgeonError(
            f"the compiled function {function.name} holds gates ({', '.join(sorted(inside.intersection(gates)))})",
            "Call the Python function that it was compiled from",
        )

    with replaced(script, "__call__", call):
        yield


def kinds(base: Kind = Function) -> Iterator[Kind]:
    """Every Function class except torch's own; torch makes one of each custom operator, too."""
    for kind in base.__subclasses__():
        if not kind.__module__.startswith("torch."):
            yield kind
        yield from kinds(kind)


def has_setup(kind: Kind) -> bool:
    """Whether the Function has a `setup_context`, so that its forward takes no context."""
    return kind.setup_context is not Function.setup_context


def run_forward(kind: Kind, forward: Callable[..., Any], args: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """Copies of `args`, and the result of `forward` of `kind` on them, recorded operation by operation."""
    leaves = [arg.detach().requires_grad_(arg.requires_grad) if isinstance(arg, Tensor) else arg for arg in args]
    with torch.enable_grad():
        # Clones, since autograd refuses an operation in place on a leaf.
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if has_setup(kind):
            return leaves, forward(*inputs)
        context: Any = FunctionCtx()
        context.needs_input_grad = tuple(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
        returned = forward(context, *inputs)
    if getattr(context, "dirty_tensors", ()):
        raise SurgeonError(
            f"the autograd Function {kind.__name__} overwrites its input", "Write its forward in plain operations"
        )
    return leaves, returned


def gradients(leaves: list[Any], returned: Any, cotangents: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The cotangent of each of `leaves`, from the `cotangents` of the outputs `returned`; None where none flows."""
    outputs = [
        (output, cotangent)
        for output, cotangent in zip(each(returned), cotangents, strict=True)
        if isinstance(output, Tensor) and output.requires_grad and cotangent is not None
    ]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not outputs or not wanted:
        return [None] * len(leaves)
    values, incoming = zip(*outputs, strict=True)
    pulled = iter(torch.autograd.grad(values, wanted, incoming, allow_unused=True))
    return [next(pulled) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]


def each(returned: Any) -> tuple[Any, ...]:
    """The outputs of a Function, one or several, as a tuple."""
    return returned if isinstance(returned, tuple) else (returned,)


def _by_forward(kind: Kind) -> dict[str, Callable[..., Any]]:
    """Replacements for forward and backward of `kind`, which let autograd through what its own forward computes."""
    own = kind.forward
    ran: list[tuple[list[Any], Any]] = []

    def keep(context: Any, leaves: list[Any], returned: Any) -> None:
        context.leaves, context.returned = leaves, returned
        context.plain_outputs = [output for output in each(returned) if isinstance(output, Tensor)]

    def detached(returned: Any) -> Any:
        outputs = tuple(output.detach() if isinstance(output, Tensor) else output for output in each(returned))
        return outputs if isinstance(returned, tuple) else outputs[0]

    def forward(*args: Any) -> Any:
        context, given = (None, args) if has_setup(kind) else (args[0], args[1:])
        leaves, returned = run_forward(kind, own, given)
        if context is None:
            ran.append((leaves, returned))
        else:
            keep(context, leaves, returned)
        return detached(returned)

    def setup_context(context: Any, _inputs: Any, _output: Any) -> None:
        keep(context, *ran.pop())

    def backward(context: Any, *cotangents: Tensor | None) -> Any:
        return tuple(gradients(context.leaves, context.returned, cotangents))

    replacements: dict[str, Callable[..., Any]] = {"forward": forward, "backward": backward}
    return replacements | ({"setup_context": setup_context} if has_setup(kind) else {})


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of the class or module `owner` while the context is open."""
    before, own = vars(owner).get(name), name in vars(owner)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
