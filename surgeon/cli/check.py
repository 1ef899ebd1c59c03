"""`surgeon check`: whether a network converts, before anything is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from surgeon.cli import extra_input_options, options
from surgeon.errors import ConversionError

if TYPE_CHECKING:
    from surgeon.analysis.inspect.convertibility import Convertibility, OperatorSupport

EXAMPLES = """\b
Examples:
  surgeon check resnet50
  surgeon check mypackage.models:make --input-shape 3,64,64
  surgeon check mypackage.models:make --at encoder.3 --json"""


@click.command("check", epilog=EXAMPLES)
@click.argument("model")
@click.option("--input-shape", type=options.SHAPE, help="One input's shape, without the batch.")
@click.option(
    "--at", metavar="LAYER", multiple=True,
    help="Check the network up to this layer. Repeatable.  [default: the network's output]",
)  # fmt: skip
@extra_input_options.described
@options.quiet
@options.as_json
def command(
    model: str,
    input_shape: tuple[int, ...] | None,
    at: tuple[str, ...],
    input: str | None,
    extra_input: tuple[extra_input_options.Stated, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Say of each operator of MODEL how its pullback is found, and of those that have none where they are and why.

    Nothing is written; a named model gets random weights. Exit code 0 where the network converts, 4 where it does not;
    then the smallest module that fails is named, where one fails on its own. Batch norms and padding that an export
    folds into convolutions are not listed. Operators that ONNX has no word for are found at export. Of a file that
    cannot be imported, only the operators at fault are listed.
    """
    from surgeon.cli import screen

    with screen.waiting("capture the network", quiet):
        support = _check(model, input_shape, at, input, extra_input)
    if as_json:
        screen.print_json({"model": model, "at": at, **support.to_json()})
    else:
        _print(model, support)
    if support.refusal is not None:
        raise support.refusal


def _check(
    model: str,
    input_shape: tuple[int, ...] | None,
    at: tuple[str, ...],
    input: str | None,
    extra_input: tuple[extra_input_options.Stated, ...],
) -> Convertibility:
    try:
        source, example = options.network(model, input_shape, input, extra_input)
    except ConversionError as error:  # of a file
        from surgeon.analysis.inspect.convertibility import not_imported

        return not_imported(error)
    from surgeon.analysis.inspect.convertibility import check
    from surgeon.bundle.manifest import Recipe

    return check(source.module, example, Recipe(at=at))


def _print(model: str, support: Convertibility) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from surgeon.cli import screen

    console = screen.console()
    if support.operators:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("operator", "count", "treatment", "reason"):
            table.add_column(heading, justify="right" if heading == "count" else "left", overflow="fold")
        for found in support.operators:
            style = "red" if found.treatment == "unsupported" else ""
            cells = (found.operator, str(len(found.places)), found.treatment, _reason(found))
            table.add_row(*[Text(cell, style) for cell in cells])
        console.print(table)
        counts = ", ".join(f"{count} {treatment}" for treatment, count in support.totals.items() if count)
        console.print(f"{sum(support.totals.values())} operators: {counts}")
    if support.piece is not None:
        piece = support.piece
        console.print(Text(f"the smallest piece that fails: {piece.module} ({piece.kind}): {piece.reason}"))
    if support.refusal is None:
        console.print(Text(f"{model} converts"), style="green")


def _reason(found: OperatorSupport) -> str:
    """Why it is unsupported, which says where its first node is, and where the others are."""
    first, *extra_inputs = found.places
    more = ", ".join(dict.fromkeys(f"{place.module} {place.line}".strip() or place.node for place in extra_inputs))
    return first.reason + (f"; also in {more}" if first.reason and more else "")
