"""Temperatures of single gates: the patterns of a recipe, and the gates that each names. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from surgeon.bundle.manifest import GateSite
from surgeon.bundle.scalars import check_scalar
from surgeon.errors import SurgeonError

_SHOWN = 6


def assign(patterns: Sequence[tuple[str, float]], gates: Sequence[GateSite]) -> list[float | None]:
    """The temperature that the last matching one of `patterns` gives to each of `gates`; None where none matches.

    A pattern (*, ? and [...] as in file names) is compared with the gate's source module and with its node in the
    graph. Raises SurgeonError for a value that is no temperature, and for a pattern that matches no soft gate or pool.
    """
    found: list[float | None] = [None] * len(gates)
    for pattern, temperature in patterns:
        check_scalar("temperature", temperature)
        matched = [i for i, gate in enumerate(gates) if gate.soft and matches(pattern, gate)]
        if not matched:
            raise SurgeonError(f"no soft gate or pool is called {pattern!r}", _some(gates))
        for i in matched:
            found[i] = temperature
    return found


def matches(pattern: str, gate: GateSite) -> bool:
    """Whether `pattern` names the gate."""
    return any(fnmatchcase(name, pattern) for name in (gate.node, gate.module))


def _some(gates: Sequence[GateSite]) -> str:
    soft = [gate for gate in gates if gate.soft]
    names = [f"{gate.module or '(root)'} ({gate.node})" for gate in soft]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"Name a module or (a node): {', '.join(names[:_SHOWN])}{more}" if names else "No gate is soft: leave it out"
