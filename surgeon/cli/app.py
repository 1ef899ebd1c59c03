"""`surgeon app`: a site in which a browser runs the ascents."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from surgeon.cli import options

EXAMPLES = """\b
Examples:
  surgeon app exported/lite0 --photo cat.jpg --photo rocket.jpg
  surgeon app exported/lite0 exported/resnet50 --title "Excitation pullbacks" -o site
  surgeon app --serve
  surgeon app exported/digits --photo exported/digit.png -o site --serve --port 8000"""


@click.command("app", epilog=EXAMPLES)
@click.argument("bundles", nargs=-1, metavar="[BUNDLE...]", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("exported/app"),
    show_default=True,
    help="The site's folder.",
)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An example photo; again for more.",
)
@click.option("--title", default="surgeon", show_default=True, help="The heading of the page.")
@click.option(
    "--runtime",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE.tgz|FOLDER",
    help="A copy of onnxruntime-web, from the npm registry or unpacked.  [default: fetched, once]",
)
@click.option("--serve", is_flag=True, help="Serve the site at 127.0.0.1, for this machine alone, until Ctrl-C.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Where to serve it.  [default: any free port]"
)
@options.silent
@options.as_json
def command(
    bundles: tuple[Path, ...],
    output: Path,
    photos: tuple[Path, ...],
    title: str,
    runtime: Path | None,
    serve: bool,
    port: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a site in which a browser runs ascents with BUNDLEs: choose a photo and a class, and watch.

    Any static web server can host it: photos stay in the browser, which runs ascent_step.onnx by onnxruntime-web, on
    the GPU where it gives pages access, else on the CPU. onnxruntime-web is fetched from the npm registry once, or
    taken from --runtime. A host that sends the headers of `surgeon app --serve` (COOP and COEP) gives the page threads.

    Without a BUNDLE, --serve serves the existing site.
    """
    from surgeon.app import Server, write_site
    from surgeon.cli import screen

    if not bundles and not serve:
        raise click.UsageError("Name a BUNDLE for a site of it, or give --serve for the existing site.")
    if not bundles and photos:
        raise click.UsageError("Photos go into a site as it is written: name its BUNDLE, too.")
    if bundles:
        with screen.progress(quiet) as progress:
            task = progress.add_task("onnxruntime-web", total=None)

            def tick(done: int, total: int | None) -> None:
                progress.update(task, completed=done, total=total)

            write_site(output, bundles, photos, title, runtime, tick)
    if not serve:
        _tell(output, None, quiet, as_json)
        return
    with Server(output, port) as server, contextlib.suppress(KeyboardInterrupt):
        _tell(output, server.address, quiet, as_json)
        server.serve_forever()


def _tell(output: Path, address: str | None, quiet: bool, as_json: bool) -> None:
    """Print the site's place; its address even where `quiet`, since nobody could guess the port."""
    from surgeon.cli import screen

    if as_json:
        sizes = [path.stat().st_size for path in output.rglob("*") if path.is_file()]
        screen.print_json({"site": str(output), "files": len(sizes), "bytes": sum(sizes), "address": address})
        return
    console = screen.console()
    if address:
        console.print(f"{output} is at {address}", soft_wrap=True, markup=False)
    elif not quiet:
        console.print(f"site: {output}", soft_wrap=True, markup=False)
        console.print("see it: surgeon app --serve", f"-o {output}", style="dim", soft_wrap=True, markup=False)
    sys.stdout.flush()
