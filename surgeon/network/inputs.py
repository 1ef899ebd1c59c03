"""Networks with several inputs: one is differentiated, the rest are passed through unchanged.

Artifacts call the differentiated one `input`, whatever the network calls it. The extra inputs keep their names, are
inputs of the artifacts that depend on them, and stay constant through an ascent: a second picture, a condition, a time
step.
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
"""By name: the shape of one sample, (3, 64, 64), or shape and dtype, ((), "int64"). The default is float32."""

Example = Tensor | tuple[Tensor, ...]
"""Arguments of a network: its input, then its extra inputs."""


class Arranged(Wrapper):
    """A network that takes the tensor `input` first and `extra_inputs` after it; it passes each on under its name."""

    def __init__(self, network: nn.Module, input: str, extra_inputs: Sequence[str]) -> None:
        super().__init__(network)
        self.names = (input, *extra_inputs)

    def forward(self, *values: Tensor) -> Any:
        return self.wrapped(**dict(zip(self.names, values, strict=True)))


def arrange(
    network: nn.Module, input: str | None, extra_inputs: Shapes
) -> tuple[nn.Module, str | None, tuple[Port, ...]]:
    """`network` with its differentiated input first: (module, name of that input, ports of the extra inputs).

    `input` names the parameter of its forward (None: the first that is not in `extra_inputs`). A network of one tensor
    is returned as it is. Raises SurgeonError for parameters that the network does not have, and for missing ones.
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
    return Arranged(network, str(input), [extra.name for extra in ports]).eval(), input, ports


def _parameters(network: nn.Module) -> dict[str, bool] | None:
    """The parameters of its forward by name, and whether each is required; None where they cannot be known."""
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # compiled code has no signature
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


def split_dtype(stated: Any, default: str = "float32") -> tuple[tuple[int, ...], str]:
    """The shape of one sample and the dtype in a value of `Shapes`."""
    return stated if len(stated) == 2 and isinstance(stated[1], str) else (tuple(stated), default)


def stated_shape(file: str, name: str, stated: Any, dtype: str) -> tuple[int, ...]:
    """The shape stated for the input `name` of a file; raises SurgeonError if another dtype than `dtype` is stated."""
    shape, stated_dtype = split_dtype(stated, dtype)
    if stated_dtype != dtype:
        raise SurgeonError(f"the input {name} of {file} is {dtype}, not {stated_dtype}", "Leave the dtype out")
    return shape


def refuse_unknown(file: str, stated: Iterable[str], known: Sequence[str]) -> None:
    """Raise SurgeonError for stated extra inputs that a file does not have."""
    unknown = next((name for name in stated if name not in known), None)
    if unknown is not None:
        takes = f"It takes {', '.join(known)} there" if known else "Leave --extra-input out: it takes nothing else"
        raise SurgeonError(f"{file} has no input {unknown!r} beside the one that is pulled back to", takes)


def identifiers(names: Iterable[str]) -> list[str]:
    """`names` as identifiers for the artifacts' inputs: ASCII, unique, and none of the reserved ones."""
    words: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII)
        word = word if word.isidentifier() else f"_{word}"
        while word in words or word in RESERVED or keyword.iskeyword(word):
            word += "_"
        words.append(word)
    return words


def port(name: str, stated: Any, called: str) -> Port:
    """The artifacts' port for an input that the network calls `called`; raises SurgeonError where there can be none."""
    shape, dtype = split_dtype(stated)
    if dtype not in DTYPES:
        raise SurgeonError(f"the input {name!r} cannot be {dtype}", f"Choose {', '.join(DTYPES)}")
    if name in RESERVED or not name.isascii():
        why = "is called as one of the artifacts' own" if name.isascii() else "is not in ASCII"
        raise SurgeonError(f"the input {name!r} {why}", "Give it another name in the network")
    return Port(name, dtype, (BATCH, *shape), f"the network's own input {called}, the same through an ascent")


def samples(ports: Sequence[Port], batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random values for `ports`: floats in [-1, 1], like an image's; integers 0 and 1, which index any table.

    The first integer of every second sample, beginning with the first, is 1: inputs that are all zero could make the
    output zero.
    """
    values = []
    for port in ports:
        shape = tuple(int(size) for size in port.shape[1:])
        dtype = getattr(torch, port.dtype)
        if dtype.is_floating_point:
            values.append(varied_input(batch, shape, generator).to(dtype))
        else:
            drawn = torch.randint(0, 2, (batch, *shape), generator=generator)
            drawn.view(batch, -1)[::2, :1] = 1
            values.append(drawn.to(dtype))
    return tuple(values)


def example(shape: Sequence[int], ports: Sequence[Port]) -> tuple[Tensor, ...]:
    """Zeros, two samples of each input, to record a network with."""
    extra_inputs = [torch.zeros(2, *map(int, port.shape[1:]), dtype=getattr(torch, port.dtype)) for port in ports]
    return (torch.zeros(2, *shape), *extra_inputs)


def tensors(example: Example) -> tuple[Tensor, ...]:
    """An example as a tuple, the input first."""
    return (example,) if isinstance(example, Tensor) else tuple(example)


@contextmanager
def same_batch(module: nn.Module) -> Iterator[None]:
    """Assert to torch.export, as it records `module`, that all inputs have as many rows as the first.

    torch.export unifies two equal batch symbols only at the end, too late for guards on their sum.
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
    """Inside the context `module`, called with its input alone, gets `extra_inputs` as well."""

    def give(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*inputs, *extra_inputs)

    with module.register_forward_pre_hook(give):
        yield
