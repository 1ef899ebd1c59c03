"""Networks that take more than one tensor: the pullback goes to one of them, and the others stand beside it.

What is pulled back to is called `input`, whatever the network calls it. The others keep their names, are inputs of the
artifacts that depend on them, and stay as they are through an ascent: a second picture, a condition, a time step.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.bundle.manifest import Port
from surgeon.bundle.ports import BATCH, RESERVED
from surgeon.errors import SurgeonError
from surgeon.network.weights import varied_input
from surgeon.network.wrapping import Wrapper

DTYPES = ("float32", "int64", "int32", "bool")

Shapes = Mapping[str, Any]
"""By name: the shape of one sample, (3, 64, 64), or that and the dtype, ((), "int64"). Float32 unless it is said."""

Example = Tensor | tuple[Tensor, ...]
"""What a network is called with: its input, and the others behind it."""


class Arranged(Wrapper):
    """A network called with the tensor `input` first and `extra_inputs` behind it, each under its name."""

    def __init__(self, network: nn.Module, input: str, extra_inputs: Sequence[str]) -> None:
        super().__init__(network)
        self.names = (input, *extra_inputs)

    def forward(self, *values: Tensor) -> Any:
        return self.wrapped(**dict(zip(self.names, values, strict=True)))


def arrange(
    network: nn.Module, input: str | None, extra_inputs: Shapes
) -> tuple[nn.Module, str | None, tuple[Port, ...]]:
    """`network` as one that takes what is pulled back to first: (module, name of that, ports of the others).

    `input` is the parameter of its forward that is meant (None: the first that is none of `extra_inputs`). Nothing is
    wrapped around a network that is called with one tensor. Raises SurgeonError for parameters that it does not have,
    or that it needs and nobody gave.
    """
    taken = _parameters(network)
    ports = tuple(port(name, stated, name) for name, stated in extra_inputs.items())
    unknown = [name for name in (*extra_inputs, *([input] if input else [])) if taken is not None and name not in taken]
    if unknown:
        raise SurgeonError(f"the network takes no {unknown[0]!r}", f"It takes {', '.join(taken or ())}")
    if input is None and taken:
        input = next((name for name in taken if name not in extra_inputs), None)
    if input is None and extra_inputs:
        raise SurgeonError("no input is left to pull back to", "Name it with --input, and the rest with --extra-input")
    if input in extra_inputs:
        raise SurgeonError(f"{input!r} is both pulled back to and given beside it", "Leave one of them out")
    missing = [name for name, needed in (taken or {}).items() if needed and name not in (input, *extra_inputs)]
    if missing:
        raise SurgeonError(
            f"the network takes {', '.join(taken or ())}, and nothing is known of {', '.join(missing)}",
            f"Give --extra-input {missing[0]}=SHAPE[:DTYPE], without the batch",
        )
    if not extra_inputs and (not taken or input == next(iter(taken))):
        return network, None, ()
    return Arranged(network, str(input), [one.name for one in ports]).eval(), input, ports


def _parameters(network: nn.Module) -> dict[str, bool] | None:
    """What its forward can be given by name, and whether it must be; None where the names are not to be known."""
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # compiled code has none
        return None
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in signature.parameters.items()
        if parameter.kind in named
    }


def split_dtype(stated: Any, usual: str = "float32") -> tuple[tuple[int, ...], str]:
    """What is said of an input, as the shape of one sample and a dtype: the `usual` one, unless it is said."""
    return stated if len(stated) == 2 and isinstance(stated[1], str) else (tuple(stated), usual)


def stated_shape(file: str, name: str, stated: Any, dtype: str) -> tuple[int, ...]:
    """The shape that is said of the input `name` of a file, which knows its `dtype`; raises where another is said."""
    shape, given = split_dtype(stated, dtype)
    if given != dtype:
        raise SurgeonError(f"the input {name} of {file} is {dtype}, not {given}", "Leave the dtype out")
    return shape


def refuse_unknown(file: str, stated: Iterable[str], known: Sequence[str]) -> None:
    """Raise SurgeonError where something is said of an input that a file does not have beside its first."""
    unknown = next((name for name in stated if name not in known), None)
    if unknown is not None:
        takes = f"It takes {', '.join(known)} there" if known else "Leave --extra-input out: it takes nothing else"
        raise SurgeonError(f"{file} has no input {unknown!r} beside the one that is pulled back to", takes)


def identifiers(names: Iterable[str]) -> list[str]:
    """`names` as words that the artifacts can call their inputs by: ASCII, no two alike, none of their own."""
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII)
        word = word if word.isidentifier() else f"_{word}"
        while word in found or word in RESERVED or keyword.iskeyword(word):
            word += "_"
        found.append(word)
    return found


def port(name: str, stated: Any, called: str) -> Port:
    """What the artifacts take for an input that the network calls `called`; raises SurgeonError for what cannot be."""
    shape, dtype = split_dtype(stated)
    if dtype not in DTYPES:
        raise SurgeonError(f"the input {name!r} cannot be {dtype}", f"Choose {', '.join(DTYPES)}")
    if name in RESERVED or not name.isascii():
        why = "is called as one of the artifacts' own" if name.isascii() else "is not in ASCII"
        raise SurgeonError(f"the input {name!r} {why}", "Give it another name in the network")
    return Port(name, dtype, (BATCH, *shape), f"the network's own input {called}, the same through an ascent")


def samples(ports: Sequence[Port], batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random values for `ports`: numbers as of an image, in [-1, 1]; integers 0 and 1, which any table has.

    The first integer of every second sample is 1, from the first sample on: what is scaled by zeros alone is zero.
    """
    found = []
    for port in ports:
        shape = tuple(int(size) for size in port.shape[1:])
        dtype = getattr(torch, port.dtype)
        if dtype.is_floating_point:
            found.append(varied_input(batch, shape, generator).to(dtype))
        else:
            drawn = torch.randint(0, 2, (batch, *shape), generator=generator)
            drawn.view(batch, -1)[::2, :1] = 1
            found.append(drawn.to(dtype))
    return tuple(found)


def example(shape: Sequence[int], ports: Sequence[Port]) -> tuple[Tensor, ...]:
    """Zeros, two samples of each, for whoever records a network."""
    extra_inputs = [torch.zeros(2, *map(int, port.shape[1:]), dtype=getattr(torch, port.dtype)) for port in ports]
    return (torch.zeros(2, *shape), *extra_inputs)


def tensors(example: Example) -> tuple[Tensor, ...]:
    """An example as a tuple, the input first."""
    return (example,) if isinstance(example, Tensor) else tuple(example)


@contextmanager
def same_batch(module: nn.Module) -> Iterator[None]:
    """Tell torch.export, as it records `module`, that all of its inputs have as many rows as the first.

    Of two that it was only told to call the same, it finds out when it is done: what divides their sum is decided then.
    """

    def check(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first, *extra_inputs = (value for value in pytree.tree_leaves((inputs, named)) if isinstance(value, Tensor))
        for other in extra_inputs:
            if other.dim() and isinstance(other.shape[0], torch.SymInt):
                torch._check(other.shape[0] == first.shape[0])

    with module.register_forward_pre_hook(check, with_kwargs=True):
        yield


@contextmanager
def with_extra_inputs(module: nn.Module, extra_inputs: Sequence[Tensor]) -> Iterator[None]:
    """For the time being `module`, called with its input alone, is given `extra_inputs` as well."""

    def give(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*inputs, *extra_inputs)

    with module.register_forward_pre_hook(give):
        yield
