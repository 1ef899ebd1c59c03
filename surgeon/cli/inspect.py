"""`surgeon inspect`: the structure of a network, a bundle or an ONNX file, as tables, as JSON, or as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.analysis.inspect.inspection import SECTIONS
from surgeon.cli import extra_input_options, options
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.cli.reports.file_sections import FileSections
    from surgeon.cli.reports.tables import Sections

DEFAULT = ("overview", "ports", "operators", "verification")
"""Sections of a bundle or file without --show; of a SOURCE the first two, as the others take longer."""

EXAMPLES = """\b
Examples:
  surgeon inspect exported/lite0
  surgeon inspect exported/lite0 --show layers,gates --filter 'blocks.3*'
  surgeon inspect exported/lite0 --show nodes              each node, and what it is pulled back by
  surgeon inspect exported/lite0 --graph lite0.html        a picture to open in a browser
  surgeon inspect classifier.onnx --show all --json
  surgeon inspect resnet50 --show layers                   what `surgeon export --at` can name
  surgeon inspect mypackage.models:make --show layers --input-shape 3,64,64"""


@click.command("inspect", epilog=EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH|SOURCE")
@click.option(
    "--show", type=options.CommaList(click.Choice((*SECTIONS, "all")), "SECTION[,SECTION]"), multiple=True,
    help=f"Sections to show: {', '.join(SECTIONS)}, or all. Repeatable.  [default: {','.join(DEFAULT)}; of a SOURCE "
    f"{','.join(DEFAULT[:2])}]",
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
    help="One input's shape, without the batch: of a SOURCE, or of an .onnx file whose sizes are free.",
)  # fmt: skip
@click.option("--as-model", is_flag=True, help="Take an .onnx file for a SOURCE, as `surgeon export` does.")
@extra_input_options.described
@options.quiet
@options.as_json
def command(
    path: Path,
    show: tuple[tuple[str, ...], ...],
    pattern: str | None,
    graph: Path | None,
    depth: int | None,
    as_model: bool,
    quiet: bool,
    as_json: bool,
    **stated: Any,
) -> None:
    """Show what a bundle, an .onnx file or a SOURCE is made of: shapes, layers, gates, operators, costs.

    A bundle's files are checked against its manifest; no weights are loaded, and nothing is run. Multiply-adds are
    those of convolutions and matrix products, for one sample where the batch is free, and memory is that of the
    activations; a loop's body counts once. Layers, nodes and operators are those of pullback.onnx, where there is one;
    the table of operators shows whether ONNX Runtime's providers here have kernels, as far as they report it. A SOURCE
    needs torch; its layers are the names that `surgeon export SOURCE --at` takes.
    """
    from surgeon.cli import screen

    is_file = not as_model and path.suffix.lower() != ".pt2" and (path.exists() or _names_a_file(path))
    _refuse_mixtures(is_file, graph, depth, stated)
    with screen.waiting("read the graph" if is_file else "run the network", quiet):
        sections: Sections = (
            _of_file(path, stated["input_shape"], pattern) if is_file else _of_source(path, stated, pattern)
        )
        names = _chosen(path, show, sections, () if graph is not None else DEFAULT if is_file else DEFAULT[:2])
        shown: Any = {name: (sections.data if as_json else sections.tables)(name) for name in names}
        if not as_json:
            shown = [part for tables in shown.values() for part in tables]
        if graph is not None:
            _draw(sections, graph, depth, pattern)
    if as_json:
        picture = {"graph": str(graph)} if graph is not None else {}
        screen.print_json({"path": str(path), **shown, **picture})
        return
    console = screen.console()
    for part in shown:
        console.print(part)
    if graph is not None:
        console.print(f"{graph} ({screen.size_text(graph.stat().st_size)})", markup=False, soft_wrap=True)


def _refuse_mixtures(is_file: bool, graph: Path | None, depth: int | None, stated: Mapping[str, Any]) -> None:
    """Raise UsageError for options that do not go together."""
    if graph is None and depth is not None:
        raise click.UsageError("--depth goes with --graph.")
    if graph is not None and graph.suffix.lower() not in (".svg", ".html"):
        raise click.BadParameter(f"{graph} ends neither in .svg nor in .html.", param_hint="--graph")
    if graph is not None and not is_file:
        raise click.UsageError("--graph draws a bundle or an .onnx file; export the model first.")
    if is_file and (stated["input"] is not None or stated["extra_input"]):
        raise click.UsageError("--input and --extra-input go with a SOURCE.")


def _of_file(path: Path, input_shape: tuple[int, ...] | None, pattern: str | None) -> FileSections:
    from surgeon.analysis.inspect.inspection import inspect
    from surgeon.cli.reports.file_sections import FileSections

    return FileSections(inspect(path, input_shape or ()), pattern)


def _of_source(path: Path, stated: Mapping[str, Any], pattern: str | None) -> Sections:
    from surgeon.cli.reports.model_sections import ModelSections

    network = options.network(str(path), stated["input_shape"], stated["input"], stated["extra_input"])
    return ModelSections(str(path), *network, pattern)


def _chosen(path: Path, show: tuple[tuple[str, ...], ...], sections: Sections, default: tuple[str, ...]) -> list[str]:
    """The sections to show, in their usual order; raises SurgeonError where one is named that there is not."""
    named = [name for names in show for name in names]
    absent = [name for name in named if name not in (*sections.there, "all")]
    if absent:
        raise SurgeonError(f"{path} has no section {absent[0]}", f"It has {', '.join(sections.there)}")
    chosen = sections.there if "all" in named else named or default
    return [name for name in sections.there if name in chosen]


def _draw(sections: Sections, graph: Path, depth: int | None, pattern: str | None) -> None:
    from surgeon.analysis.inspect.diagram import draw
    from surgeon.cli.reports.file_sections import FileSections

    assert isinstance(sections, FileSections)
    draw(sections.inspection, graph, depth=depth, pattern=pattern)


def _names_a_file(path: Path) -> bool:
    """Whether `path`, which does not exist, is meant as a bundle or file rather than as a SOURCE."""
    return ":" not in str(path) and (len(path.parts) > 1 or path.suffix.lower() in (".onnx", ".json"))
