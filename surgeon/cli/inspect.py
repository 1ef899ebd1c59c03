"""`surgeon inspect`: what a model, a bundle or an ONNX file is made of, in tables, as JSON, or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.analysis.inspect.inspection import SECTIONS
from surgeon.cli import extra_input_options, options
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.cli.reports.tables import Sections

USUAL = ("overview", "ports", "operators", "verification")
"""What is shown of a bundle or file unless it is said; of a model the first two, as the others take longer."""

EXAMPLES = """\b
Examples:
  surgeon inspect exported/lite0
  surgeon inspect exported/lite0 --show layers,gates --filter 'blocks.3*'
  surgeon inspect exported/lite0 --show nodes              each node, and what it is pulled back by
  surgeon inspect exported/lite0 --graph lite0.html        a picture to open in a browser
  surgeon inspect classifier.onnx --show all --json
  surgeon inspect resnet50 --show layers                   what `surgeon export --at` can name
  surgeon inspect mypackage.models:make --show layers --input-shape 3,64,64"""


class Chosen(click.ParamType[tuple[str, ...]]):
    """Names of sections between commas as a tuple; `all` is every one."""

    name = "SECTION[,SECTION]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse `value`, unless it is parsed already."""
        if isinstance(value, tuple):
            return value
        found = [name.strip() for name in value.split(",")]
        for name in found:
            if name not in (*SECTIONS, "all"):
                self.fail(f"{name!r} is not one of {', '.join(SECTIONS)}, all.", param, ctx)
        return SECTIONS if "all" in found else tuple(found)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The sections that may follow what is typed."""
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in (*SECTIONS, "all") if name.startswith(last)]


@click.command("inspect", epilog=EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH|MODEL")
@click.option(
    "--show", type=Chosen(), multiple=True,
    help=f"What to show: {', '.join(SECTIONS)}, or all. Repeatable.  [default: {','.join(USUAL)}; of a MODEL "
    f"{','.join(USUAL[:2])}]",
)  # fmt: skip
@click.option(
    "--filter", "pattern", metavar="PATTERN",
    help="In layers, nodes and gates, only those whose module (or one around it) or node has this name; *, ? and [...] "
    "as in file names. In a picture, modules of that name are opened.",
)  # fmt: skip
@click.option(
    "--graph", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Draw the graph of a bundle or .onnx file, forward beside backward: .html to explore, .svg to keep.",
)  # fmt: skip
@click.option("--depth", type=click.IntRange(min=1), help="With --graph: how deep modules are opened.  [default: fits]")
@click.option(
    "--input-shape", type=options.SHAPE,
    help="One input's shape, without the batch: of a MODEL, or of an .onnx file whose sizes are free.",
)  # fmt: skip
@click.option("--as-model", is_flag=True, help="Take an .onnx file for a MODEL, as `surgeon export` does.")
@extra_input_options.described
@options.quiet
@options.as_json
def command(
    path: Path,
    show: tuple[tuple[str, ...], ...],
    pattern: str | None,
    graph: Path | None,
    depth: int | None,
    input_shape: tuple[int, ...] | None,
    as_model: bool,
    input: str | None,
    extra_input: tuple[extra_input_options.Stated, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Say what a bundle or .onnx file at PATH is made of, or a MODEL: shapes, layers, gates, operators, costs.

    Checks a bundle's files against its manifest, loads no weights and runs nothing. Multiply-adds are those of
    convolutions and products of matrices, for one sample where the batch is free, and memory is what activations take;
    a loop's body counts once. Layers, nodes and operators are those of pullback.onnx, where there is one; of operators
    it says whether ONNX Runtime's providers here have kernels, as far as they tell. A MODEL needs torch; its layers are
    what `surgeon export MODEL --at` can name.
    """
    from surgeon.cli import screen

    is_file = not as_model and path.suffix.lower() != ".pt2" and (path.exists() or _names_a_file(path))
    if graph is None and depth is not None:
        raise click.UsageError("--depth goes with --graph.")
    if graph is not None and graph.suffix.lower() not in (".svg", ".html"):
        raise click.BadParameter(f"{graph} ends neither in .svg nor in .html.", param_hint="--graph")
    if graph is not None and not is_file:
        raise click.UsageError("--graph draws a bundle or an .onnx file; export the model first.")
    described: Sections
    if is_file:
        if input is not None or extra_input:
            raise click.UsageError("--input and --extra-input go with a MODEL.")
        from surgeon.analysis.inspect.inspection import inspect
        from surgeon.cli.reports.file_sections import FileSections

        with screen.waiting("read the graph", quiet):
            inspection = inspect(path, input_shape or ())
            described = FileSections(inspection, pattern)
            if graph is not None:
                from surgeon.analysis.inspect.diagram import draw

                draw(inspection, graph, depth=depth, pattern=pattern)
    else:
        from surgeon.cli.reports.model_sections import ModelSections

        with screen.waiting("capture the network", quiet):
            described = ModelSections(str(path), *options.network(str(path), input_shape, input, extra_input), pattern)
    asked = [name for one in show for name in one if one != SECTIONS]
    absent = [name for name in asked if name not in described.there]
    if absent:
        raise SurgeonError(f"{path} has no section {absent[0]}", f"It has {', '.join(described.there)}")
    chosen = [name for one in show for name in one] or (
        [] if graph is not None else list(USUAL if is_file else USUAL[:2])
    )
    wanted = [name for name in described.there if name in chosen]
    if as_json:
        picture = {"graph": str(graph)} if graph is not None else {}
        screen.print_json({"path": str(path), **{name: described.data(name) for name in wanted}, **picture})
        return
    console = screen.console()
    for name in wanted:
        for part in described.tables(name):
            console.print(part)
    if graph is not None:
        console.print(f"{graph} ({screen.size_text(graph.stat().st_size)})", markup=False, soft_wrap=True)


def _names_a_file(path: Path) -> bool:
    """Whether `path`, where nothing is, was meant for a bundle or file rather than for a model."""
    return ":" not in str(path) and (len(path.parts) > 1 or path.suffix.lower() in (".onnx", ".json"))
