"""`surgeon verify`: a bundle's files against its manifest, and its artifacts against autograd."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.errors import SurgeonError, VerificationError

if TYPE_CHECKING:
    from surgeon.bundle.folder import Bundle
    from surgeon.bundle.manifest import Comparison

EXAMPLES = """\b
Examples:
  surgeon verify exported/lite0
  surgeon verify exported/mine --source mypackage.models:make --weights trained.pth
  surgeon verify exported/lite0 --integrity"""


@click.command("verify", epilog=EXAMPLES, short_help="Compare a bundle's artifacts with PyTorch's autograd.")
@options.bundle
@click.option("--source", metavar="SOURCE", help="The network to compare with.  [default: what the manifest names]")
@click.option("--weights", metavar="FILE|NAME|random", help="Its weights.  [default: what the manifest names]")
@click.option(
    "--tolerance",
    type=options.number(above=0),
    metavar="E",
    help="Relative L2 error allowed.  [default: by quantity]",
)
@click.option("--integrity", is_flag=True, help="Check the files against the manifest and nothing more (no torch).")
@options.device
@options.provider_options
@options.quiet
@options.as_json
def command(
    bundle: Path,
    source: str | None,
    weights: str | None,
    tolerance: float | None,
    integrity: bool,
    device: str,
    provider_options: dict[str, str],
    quiet: bool,
    as_json: bool,
) -> None:
    """Check the files of BUNDLE against its manifest, then run its artifacts against PyTorch's autograd.

    The network is built again from the manifest, which knows a weights file by name only: give its place with
    --weights. Exit code 3 where an artifact is off by more than its tolerance.
    """
    from surgeon.bundle.folder import Bundle

    opened = Bundle.open(bundle)
    opened.check()
    if integrity:
        _print(opened, [], as_json)
        return
    lines: list[Comparison] = []
    try:
        where = {"device": device, "provider_options": provider_options}
        _compare(opened, source, weights, tolerance, lines, quiet, **where)
    except VerificationError:
        _print(opened, lines, as_json, finished=False)
        raise
    _print(opened, lines, as_json)
    from surgeon.verify.verify import require

    require(tuple(lines))


def _compare(
    bundle: Bundle,
    source: str | None,
    weights: str | None,
    tolerance: float | None,
    lines: list[Comparison],
    quiet: bool,
    **where: Any,
) -> None:
    """Append each comparison to `lines` as it is made; `where` is the device and its provider's options."""
    from surgeon.cli import screen

    try:
        from surgeon.network.sources import resolve_again
        from surgeon.verify.verify import verify
    except ImportError as error:
        raise SurgeonError(
            f"the files of {bundle.path} are as exported, and nothing more was verified: torch is not installed",
            'pip install "surgeon[convert]", or give --integrity to check the files alone',
        ) from error
    with screen.waiting("build the network", quiet):
        network = resolve_again(bundle.manifest, source=source, weights=weights)
    names = list(bundle.manifest.artifacts)
    with screen.progress(quiet) as bar:
        task = bar.add_task("", total=len(names))

        def note(line: Comparison) -> None:
            description = f"{line.artifact} {line.quantity}, {line.condition}"
            bar.update(task, description=description, completed=names.index(line.artifact))
            lines.append(line)

        verify(
            bundle.path,
            network.module,
            manifest=bundle.manifest,
            tolerance=tolerance,
            **where,
            progress=note,
        )


def _print(bundle: Bundle, lines: list[Comparison], as_json: bool, finished: bool = True) -> None:
    from surgeon.cli import screen
    from surgeon.cli.reports import comparisons

    files = list(bundle.manifest.files)
    if as_json:
        screen.print_json(
            {
                "bundle": str(bundle.path),
                "files": files,
                "passed": finished and all(line.passed for line in lines),
                "verification": comparisons.facts(lines),
            }
        )
        return
    console = screen.console()
    if lines:
        console.print(comparisons.table(lines))
        console.print(comparisons.summary(lines))
    console.print(f"{bundle.path}: {len(files)} files as exported", soft_wrap=True, markup=False)
