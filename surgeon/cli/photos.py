"""Photos and targets of commands: read, matched, and kept from being overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgeon.cli import options
from surgeon.errors import SurgeonError
from surgeon.runtime.photos import image_of
from surgeon.runtime.targets import Target, read_targets

if TYPE_CHECKING:
    import numpy

    from surgeon.runtime.session import Session


def choose_targets(
    session: Session, photos: Sequence[Path], targets: Sequence[str], units: Sequence[str]
) -> list[Target | None]:
    """The class or unit for each photo: one for all, one for each, or None for the network's most probable class."""
    chosen: list[Target | None] = [*read_targets(session, targets, units)]
    if len(chosen) not in (0, 1, len(photos)):
        what = "units" if units else "targets"
        raise click.UsageError(f"{len(photos)} photos have {len(chosen)} {what}: give one, or one for each.")
    return chosen if len(chosen) == len(photos) else (chosen or [None]) * len(photos)


def read_photo(session: Session, photo: Path, size: options.Size | None) -> numpy.ndarray:
    """The photo as the bundle's input [C, H, W], at `size` or at the bundle's; raises where that one alone is taken."""
    from surgeon.runtime.photos import at_size, load_photo

    image = image_of(session)
    if size is None:
        return load_photo(photo, image)
    if not session.manifest.recipe.dynamic_size:
        raise SurgeonError(
            f"the bundle {session.bundle.path} takes photos of {image.height}x{image.width} alone",
            "Leave --size out, or export it with --dynamic-size",
        )
    if isinstance(size, tuple):
        _refuse_hopeless(image.channels, *size)
        return load_photo(photo, at_size(image, *size))
    return load_photo(photo, image, native=True)


def _refuse_hopeless(channels: int, height: int, width: int) -> None:
    """Raise SurgeonError for a size whose input alone exceeds this machine's memory: the system would end the process.

    A run needs many times as much, but how many times is unknown beforehand.
    """
    from surgeon.cli.screen import size_text
    from surgeon.runtime.system_info import installed

    needed, there = 4 * channels * height * width, installed()
    if there is not None and needed > there:
        raise SurgeonError(
            f"an input of {height}x{width} takes {size_text(needed)}, and this machine has {size_text(there)}",
            "Give a smaller --size",
        )


def spare_photos(photos: Sequence[Path], written: Sequence[Path]) -> None:
    """Raise SurgeonError where writing `written` would replace one of `photos`."""
    given = {photo.resolve() for photo in photos}
    for path in written:
        if path.resolve() in given:
            raise SurgeonError(f"{path} is one of the photos, and would be overwritten", "Give another place with -o")
