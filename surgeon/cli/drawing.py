"""The shell of every `surgeon figure` command: photos, session, pages, progress and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from surgeon.cli import options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt
from surgeon.runtime.targets import Target, predicted

if TYPE_CHECKING:
    import numpy

    from surgeon.analysis.figures.layouts import Figure
    from surgeon.runtime.session import Session

T = TypeVar("T")

_OPTIONS = (
    options.bundle,
    options.photos,
    options.size,
    click.option(
        "--rows",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Most photos on a page; further ones go to FILE-2, FILE-3 and so on.",
    ),
    click.option(
        "--side", type=click.IntRange(32, 1024), default=192, show_default=True, help="Pixels of a cell's side."
    ),
    options.device,
    options.provider_options,
    options.threads,
    options.silent,
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=Path("exported/figure.png"),
        show_default=True,
        help="A picture (.png, .jpg), or an SVG with the pictures inside.",
    ),
    options.as_json,
)

clip = click.option(
    "--clip",
    type=click.FloatRange(0, 49),
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    help="Cut this share of a cell's values at either end before scaling it: more contrast than the paper's.",
)
columns = click.option(
    "--columns", type=click.IntRange(min=1), default=6, show_default=True, help="Most classes or units in a row."
)


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Drawing`, which every figure has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Drawing:
    """A figure in the making: the photos, read, and the session that will climb from them.

    Raises what is wrong with the options before anything is computed.
    """

    def __init__(
        self,
        bundle: Path,
        photos: Sequence[Path],
        size: options.Size | None,
        rows: int,
        side: int,
        device: str,
        provider_options: dict[str, str],
        threads: int | None,
        quiet: bool,
        output: Path,
        as_json: bool,
    ) -> None:
        from surgeon.analysis.figures import grids

        self.photos, self.side, self.quiet, self.output, self.as_json = photos, side, quiet, output, as_json
        self._place = (device, threads, provider_options)
        grids.require_format(output)
        self.pages = [range(at, min(at + rows, len(photos))) for at in range(0, len(photos), rows)]
        self.files = [
            output if at == 0 else output.with_stem(f"{output.stem}-{at + 1}") for at in range(len(self.pages))
        ]
        spare_photos(photos, self.files)
        self.sessions: list[Session] = []
        self.session = self.load(bundle)
        if self.session.manifest.recipe.objective == "energy":
            raise SurgeonError(f"the objective of {bundle} is energy, which has no target classes", "See `surgeon run`")
        if self.session.extra_inputs:
            name = self.session.extra_inputs[0].name
            raise SurgeonError(f"{bundle} takes {name} beside the photo", "See `surgeon run`")
        self.images = [read_photo(self.session, photo, size) for photo in photos]

    def load(self, bundle: Path) -> Session:
        """The session of a bundle on the chosen device."""
        from surgeon.cli import screen
        from surgeon.runtime.session import load

        with screen.waiting("open the bundle", self.quiet):
            self.sessions.append(load(bundle, *self._place))
        return self.sessions[-1]

    def each(self, look: Callable[[numpy.ndarray], T]) -> list[T]:
        """`look` at every photo, behind a progress bar."""
        from surgeon.cli import screen

        with screen.progress(self.quiet) as progress:
            return list(progress.track(map(look, self.images), len(self.images), description="looking"))

    def aims(self, targets: Sequence[str], units: Sequence[str]) -> list[Target]:
        """The class or unit for each photo: those of --target or --unit, or the network's most probable class."""
        chosen = choose_targets(self.session, self.photos, targets, units)
        given = [target for target in chosen if target is not None]
        return given or self.each(lambda image: predicted(self.session, image))

    def draw(self, figure: Figure) -> None:
        """Draw and write every page, then report; Ctrl-C keeps the photos that are done."""
        from surgeon.analysis.figures import grids, layouts
        from surgeon.cli import screen

        grids.require_room(figure.columns, figure.rows * len(self.pages[0]), self.side)
        titles: dict[str, None] = {}
        written: list[Path] = []
        done, interrupted = 0, False
        with screen.progress(self.quiet) as progress:
            task = progress.add_task("climbing", total=len(self.photos) * figure.ticks)

            def tick() -> None:
                progress.advance(task)

            for page, file in zip(self.pages, self.files, strict=True):
                drawn, interrupted = collect_until_interrupt((figure.draw(at, tick) for at in page), before=done)
                if drawn:
                    panels = layouts.joined(drawn)
                    grids.save(file, panels, self.session.manifest.model.name, figure.footer, self.side)
                    titles |= dict.fromkeys(panel.title for panel in panels)
                    written.append(file)
                    done += len(drawn)
                if interrupted:
                    break
        self._report(figure, list(titles), written, done)
        if interrupted:
            where = " and ".join(map(str, written))
            raise Interrupted(f"interrupted after {done} of {len(self.photos)} photos, which are in {where}")

    def _report(self, figure: Figure, titles: list[str], written: list[Path], done: int) -> None:
        from surgeon.cli import screen

        screen.warn_off_device(*self.sessions)
        if self.as_json:
            shown = list(zip(self.photos, self.images, figure.facts, strict=True))[:done]
            rows = [{"photo": str(photo), "size": list(image.shape[1:]), **facts} for photo, image, facts in shown]
            pages = [str(file) for file in written]
            screen.print_json({"figure": str(self.output), "pages": pages, "panels": titles, "rows": rows})
        elif not self.quiet:
            for file in written:
                click.echo(f"figure: {file}")
