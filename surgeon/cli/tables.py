"""Tables and figures as people read them, for `surgeon inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from surgeon.cli.screen import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

STYLES = {"module": "bold", "layer": "bold", "backward": "cyan", "rule": "green", "T": "green", "kind": "dim"}
"""How columns look in a terminal, by heading."""


class Sections(Protocol):
    """What `surgeon inspect` can show of one thing."""

    there: tuple[str, ...]
    """The sections that it has."""

    def data(self, section: str) -> Any:
        """A section as JSON values."""

    def tables(self, section: str) -> Iterable[RenderableType]:
        """A section for people."""


def printable(item: Any) -> str:
    """What a cell says, without the characters that would steer a terminal: names may come from any file."""
    text = "" if item is None else str(item)
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """A table whose heading is left out where every column's is blank; text is never taken for markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title), style="bold") if title else None
    headed = any(column.strip() for column in columns)
    shape = box.SIMPLE_HEAD if headed else None
    made = Table(title=heading, title_justify="left", box=shape, pad_edge=False, show_header=headed)
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", style=STYLES.get(column)
        )
    for row in rows:
        made.add_row(*[Text(printable(item)) for item in row])
    return made


def shape_text(shape: Sequence[int | str] | None, none: str = "") -> str:
    """[N, 64, 56, 56]."""
    return none if shape is None else "[" + ", ".join(map(str, shape)) + "]"


def bytes_text(count: int | None) -> str:
    """Bytes; "?" where they are not known, and nothing for 0."""
    return "?" if count is None else size_text(count) if count else ""


def counts_text(counts: dict[str, int], limit: int = 12) -> str:
    """Conv 53, Relu 49, …; a count of 1 goes without saying."""
    listed = [f"{name} {count}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(listed[:limit]) + (", …" if len(listed) > limit else "")
