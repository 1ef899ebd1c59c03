"""Tables and figures as people read them, for `surgeon inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from surgeon.cli.screen import size_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
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


@dataclass(frozen=True)
class Fitted:
    """A table that leaves out columns, those of `spare` in turn, until it fits a terminal; a pipe gets all of them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    right: Sequence[str] = ()
    spare: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's way to ask for what is printed."""
        from rich.text import Text

        if self.title:
            yield Text(printable(self.title), style="bold")
        for left_out in range(len(self.spare) + 1):
            table = self._table(self.spare[:left_out])
            wide = console.measure(table, options=options.update(width=10_000)).maximum
            if wide <= options.max_width or not console.is_terminal:
                break
        yield table

    def _table(self, without: Sequence[str]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        headed = any(column.strip() for column in self.columns)
        made = Table(box=box.SIMPLE_HEAD if headed else None, pad_edge=False, show_header=headed)
        kept = [place for place, column in enumerate(self.columns) if column not in without]
        for column in (self.columns[place] for place in kept):
            side: Literal["left", "right"] = "right" if column in self.right else "left"
            made.add_column(column, justify=side, overflow="fold", style=STYLES.get(column))
        for row in self.rows:
            cells = [row[place] for place in kept]
            made.add_row(*[cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells])
        return made


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> Fitted:
    """A table under its title; headings are left out where every column's is blank; text is never taken for markup.

    A cell may be a styled `rich.text.Text`.
    """
    return Fitted(title, columns, list(rows), right, spare)


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
