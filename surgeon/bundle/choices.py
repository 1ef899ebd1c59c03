"""Dataclasses that check their own fields: the annotation of a field states its choices, once. Torch-free.

`Literal["lower", "both"]` offers these two texts, and `Annotated[str, NAMES]` the names that the list NAMES holds when
it is asked. Whatever else needs the choices, such as the command line's menu, takes them from here.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

from surgeon.errors import SurgeonError

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


class RecordedName(str):
    """A name that a manifest records, such as a policy's. It passes the check: a bundle runs without the policy."""

    __slots__ = ()


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The annotations of `kind` by field, evaluated."""
    return typing.get_type_hints(kind, include_extras=True)


def choices(kind: type, field: str) -> tuple[str, ...]:
    """The choices of the field, without "", which stands for none; empty where its annotation lists none."""
    return _choices(hints(kind)[field])


def check_fields(value: Any) -> None:
    """Raise SurgeonError for the first field of the dataclass `value` that its annotation does not allow."""
    for name, hint in hints(value.__class__).items():
        held = getattr(value, name)
        if not _allows(hint, held):
            known = _choices(hint)
            remedy = f"Choose {_listed(known)}" if known else f"Give {_described(hint)}"
            raise SurgeonError(f"{name} cannot be {held!r}", remedy)


def _choices(hint: Any) -> tuple[str, ...]:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return tuple(filter(None, typing.get_args(hint)))
    return tuple(hint.__metadata__[0]) if origin is typing.Annotated else ()


def _allows(hint: Any, value: Any) -> bool:
    """Whether `value` is of the annotated type `hint`: exactly, except that an int is a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is typing.Annotated:
        known = hint.__metadata__[0]
        return isinstance(value, str) and (isinstance(value, RecordedName) or not known or value in known)
    if origin in (typing.Union, types.UnionType):
        return any(_allows(argument, value) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(items) == len(value) and all(map(_allows, items, value))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _described(hint: Any) -> str:
    """The type in words."""
    items = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return _described(items[0])
    if typing.get_origin(hint) is not tuple:
        return _WORDS[hint]
    if items[-1] is Ellipsis:
        return f"a tuple, each item {_described(items[0])}"
    return f"({', '.join(map(_described, items))})"


def _listed(names: tuple[str, ...]) -> str:
    """As "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
