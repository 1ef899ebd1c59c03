"""The one helper for tables that commands print, and figures as people read them.

A table is a title, a list of columns and the rows. `Column(heading, value)` computes a cell from a row, whatever a row
is:

    LAYERS = [
        Column("layer", lambda layer: layer.name),
        Column("memory", lambda layer: bytes_text(layer.bytes), right=True, spare=1),
    ]
    yield table_of("layers", LAYERS, layers)

To add a column to a section of `surgeon inspect`, add one such line to the list of its table, in
`model_sections.py` for a network or in `file_sections.py` for a bundle or an ONNX file. `--json` prints every field of
the rows by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
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


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the cell that it has in a row, which may be a rich Text with a style of its own."""

    heading: str
    value: Callable[[Any], Any]
    right: bool = False  # aligned to the right, as figures are
    spare: int = 0  # where the terminal is too narrow, 1 is left out first, then 2, …; 0 stays
    wrap: bool = True


def table_of(title: str, columns: Sequence[Column], rows: Iterable[Any]) -> Fitted:
    """A table under its title; headings are left out where every column's is blank; text is never taken for markup."""
    return Fitted(title, tuple(columns), tuple(rows))


def cells(headings: Sequence[str], right: Sequence[str] = (), spare: Sequence[str] = ()) -> tuple[Column, ...]:
    """Columns of rows that are sequences already; `right` and `spare` name some of them, the first to go first."""
    places = {heading: place for place, heading in enumerate(spare, 1)}
    return tuple(
        Column(heading, operator.itemgetter(i), heading in right, places.get(heading, 0))
        for i, heading in enumerate(headings)
    )


def table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> Fitted:
    """The same of rows that hold their cells already; see `cells`."""
    return table_of(title, cells(headings, right, spare), rows)


def facts_table(rows: Iterable[tuple[str, Any]]) -> Fitted:
    """Names and values, without headings."""
    return table("", ("", " "), rows)


def printable(item: Any) -> str:
    """The text of a cell without the characters that would steer a terminal: names may come from any file."""
    text = "" if item is None else str(item)
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


@dataclass(frozen=True)
class Fitted:
    """A table that leaves out spare columns in turn until it fits a terminal; a pipe gets all of them."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Any, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's way to ask for what is printed."""
        from rich.text import Text

        if self.title:
            yield Text(printable(self.title), style="bold")
        spare = sorted(column.spare for column in self.columns if column.spare)
        for last in (0, *spare):
            shown = [column for column in self.columns if not 0 < column.spare <= last]
            grid = self._grid(shown)
            width = console.measure(grid, options=options.update(width=10_000)).maximum
            if width <= options.max_width or not console.is_terminal:
                break
        yield grid

    def _grid(self, columns: Sequence[Column]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        headed = any(column.heading.strip() for column in self.columns)
        grid = Table(box=box.SIMPLE_HEAD if headed else None, pad_edge=False, show_header=headed)
        for column in columns:
            side: Literal["left", "right"] = "right" if column.right else "left"
            style = STYLES.get(column.heading)
            grid.add_column(column.heading, justify=side, overflow="fold", style=style, no_wrap=not column.wrap)
        for row in self.rows:
            cells = [column.value(row) for column in columns]
            grid.add_row(*[cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells])
        return grid


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
