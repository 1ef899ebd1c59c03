"""Arrays to pictures, and pictures to files. Torch-free."""

from __future__ import annotations

from pathlib import Path

import numpy
import PIL.Image
import PIL.ImageOps

from surgeon.bundle.atomic import replacing
from surgeon.bundle.manifest import Image
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError


def to_picture(values: Array, image: Image) -> PIL.Image.Image:
    """The input `values` [C, H, W] in `image.range` as a picture; values beyond the range are clipped."""
    low, high = image.range
    return _picture((values - low) / (high - low))


def difference(clean: Array, perturbed: Array, clip: float = 0.0) -> PIL.Image.Image:
    """The change of the input, min-max scaled over the whole picture, as in the paper; grey where nothing changed.

    `clip` is the percentage of values at either end of the range that is cut first, since a few extreme pixels leave
    the others little contrast.
    """
    delta = numpy.asarray(perturbed - clean, numpy.float64)
    low, high = (float(end) for end in numpy.percentile(delta, (clip, 100 - clip)))
    return _picture((delta - low) / (high - low) if high > low else numpy.full_like(delta, 0.5))


def heat(pullback: Array, clip: float = 0.0) -> PIL.Image.Image:
    """A pullback [C, H, W] scaled by its largest absolute value: zero is mid grey in every picture.

    `clip` is the percentage of the largest absolute values that is cut first.
    """
    largest = float(numpy.percentile(numpy.abs(pullback), 100 - clip))
    return _picture(0.5 + 0.5 * numpy.asarray(pullback, numpy.float64) / (largest or 1.0))


def _picture(values: Array) -> PIL.Image.Image:
    """`values` [C, H, W] in [0, 1] as an 8-bit picture."""
    levels = (numpy.clip(values, 0, 1) * 255 + 0.5).astype(numpy.uint8).transpose(1, 2, 0)
    return PIL.Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).convert("RGB")


def format_of(path: Path) -> str:
    """Pillow's name of the format of the path's ending; raises SurgeonError for an unknown ending."""
    format = PIL.Image.registered_extensions().get(path.suffix.lower())
    if format is None or format not in PIL.Image.SAVE:
        raise SurgeonError(f"{path} has no ending that names a picture format", "Choose .png or .jpg")
    return format


def save(picture: PIL.Image.Image, path: Path) -> None:
    """Write `picture` beside `path` in the format of its ending, then rename it.

    Raises SurgeonError, and leaves nothing, where the ending is unknown or the file cannot be written.
    """
    format = format_of(path)
    with replacing(path) as partial:
        picture.save(partial, format=format, quality=90)
