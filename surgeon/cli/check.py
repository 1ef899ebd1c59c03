"""`surgeon check`: whether a network converts, before anything is exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from surgeon.cli import extra_input_options, options
from surgeon.errors import ConversionError

if TYPE_CHECKING:
    from surgeon.analysis.inspect.convertibility import ConvertibilityReport, TreatedOperator

EXAMPLES = """\b
Examples:
  surgeon check resnet50
  surgeon check mypackage.models:make --input-shape 3,64,64
  surgeon check mypackage.models:make --at encoder.3 --json"""


@click.command("check", epilog=EXAMPLES)
@click.argument("model", metavar="SOURCE")
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
    """List the operators of SOURCE: how each one's pullback is found, and where and why one has none.

    Nothing is written; a named model gets random weights. The exit code is 0 where the network converts and 4 where it
    does not; then the innermost module that fails on its own is named, if there is one. Batch norms and padding that an
    export folds into convolutions are not listed. Operators that ONNX cannot express are found at export. For a file
    that cannot be imported, only the operators at fault are listed.
    """
    from surgeon.cli import screen

    with screen.waiting("capture the network", quiet):
        report = _check(model, input_shape, at, input, extra_input)
    if as_json:
        screen.print_json({"model": model, "at": at, **report.to_json()})
    else:
        _print(model, report)
    if report.refusal is not None:
        raise report.refusal


def _check(
    model: str,
    input_shape: tuple[int, ...] | None,
    at: tuple[str, ...],
    input: str | None,
    extra_input: tuple[extra_input_options.Stated, ...],
) -> ConvertibilityReport:
    try:
        source, example = options.network(model, input_shape, input, extra_input)
    except ConversionError as error:  # of a file
        from surgeon.analysis.inspect.convertibility import not_imported

        return not_imported(error)
    from surgeon.analysis.inspect.convertibility import check
    from surgeon.bundle.manifest import Recipe

    return check(source.module, example, Recipe(at=at))


def _print(model: str, report: ConvertibilityReport) -> None:
    from rich.text import Text

    from surgeon.cli import screen
    from surgeon.cli.reports.tables import Column, table_of

    def styled(value: Callable[[TreatedOperator], str]) -> Callable[[TreatedOperator], Text]:
        return lambda treated: Text(value(treated), "red" if treated.treatment == "unsupported" else "")

    console = screen.console()
    if report.operators:
        columns = (
            Column("operator", styled(lambda treated: treated.operator)),
            Column("count", styled(lambda treated: str(len(treated.places))), right=True),
            Column("treatment", styled(lambda treated: treated.treatment)),
            Column("reason", styled(_reason)),
        )
        console.print(table_of("", columns, report.operators))
        counts = ", ".join(f"{count} {treatment}" for treatment, count in report.totals.items() if count)
        console.print(f"{sum(report.totals.values())} operators: {counts}")
    if report.failing_module is not None:
        failing = report.failing_module
        console.print(Text(f"the innermost module that fails: {failing.module} ({failing.kind}): {failing.reason}"))
    if report.refusal is None:
        console.print(Text(f"{model} converts"), style="green")


def _reason(treated: TreatedOperator) -> str:
    """Why the operator is unsupported, with the place of its first node, and the places of the others."""
    first, *others = treated.places
    more = ", ".join(dict.fromkeys(f"{place.module} {place.line}".strip() or place.node for place in others))
    return first.reason + (f"; also in {more}" if first.reason and more else "")
