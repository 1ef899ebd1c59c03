"""Photos to network inputs. Torch-free."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import PIL.Image
import PIL.ImageOps

from surgeon.bundle.manifest import Image
from surgeon.bundle.scalars import shape_text
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.runtime.session import Session


SMALLEST = 8  # pixels: a photo with a shorter side shows nothing
LONGEST = 20  # shorter sides: a longer side is refused, since resizing would need unbounded memory
_FILTERS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


def load_photo(path: str | Path, image: Image, native: bool = False) -> Array:
    """The photo at `path` as f32 [C, H, W] in `image.range`, resized and cropped by the manifest's Image.

    With `native` it keeps its own size instead. It is turned upright by its EXIF orientation, transparency is laid over
    white, and an animation counts as its first picture. Raises SurgeonError, with the file's name, where it is missing,
    unreadable, no picture, too small or too elongated.
    """
    if image.channels not in (1, 3):
        raise SurgeonError(f"the network takes {image.channels} channels, and a photo has 3", "Run it from Python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # only large; Pillow refuses the dangerous
        photo = _read(Path(path))
    shorter, longer = sorted(photo.size)
    if shorter < SMALLEST:
        raise SurgeonError(f"the photo {path} has {photo.width} x {photo.height} pixels, too few to show anything")
    if longer > LONGEST * shorter:
        raise SurgeonError(f"the photo {path} is too elongated ({photo.width} x {photo.height})", "Crop it first")
    photo = (photo if native else fit(photo, image)).convert("L" if image.channels == 1 else "RGB")
    pixels = numpy.atleast_3d(numpy.asarray(photo, numpy.float32)).transpose(2, 0, 1) / numpy.float32(255)
    low, high = image.range
    return numpy.ascontiguousarray(pixels * numpy.float32(high - low) + numpy.float32(low))


def at_size(image: Image, height: int, width: int) -> Image:
    """`image` for another size, cropped from as much of the photo: `resize` grows with the crop's shorter side."""
    grown = min(height, width) / min(image.height, image.width)
    return dataclasses.replace(image, height=height, width=width, resize=round(image.resize * grown))


def fit(photo: PIL.Image.Image, image: Image) -> PIL.Image.Image:
    """`photo` at `image.width` x `image.height`: a square one resized at once, another by its shorter side and cropped.

    The shorter side becomes `image.resize`, or more where the crop would not be covered otherwise.
    """
    size, method = (image.width, image.height), _FILTERS[image.interpolation]
    if photo.width == photo.height:
        return photo.resize(size, method)
    scale = max(image.resize / min(photo.size), image.width / photo.width, image.height / photo.height)
    # Rounded down as in torchvision, with a margin for a side that should be hit exactly but for rounding.
    width, height = int(photo.width * scale + 1e-6), int(photo.height * scale + 1e-6)
    left, top = round((width - image.width) / 2), round((height - image.height) / 2)
    return photo.resize((width, height), method).crop((left, top, left + image.width, top + image.height))


def _read(path: Path) -> PIL.Image.Image:
    """The decoded photo as 8-bit RGB."""
    if not path.exists():
        raise SurgeonError(f"the photo {path} does not exist")
    if path.is_dir():
        raise SurgeonError(f"{path} is a folder, not a photo", "Name the photos in it")
    try:
        with PIL.Image.open(path) as file:
            file.load()
            return _flatten(PIL.ImageOps.exif_transpose(file))
    except PIL.UnidentifiedImageError as error:
        raise SurgeonError(f"{path} is not a picture that can be read", "Give a JPEG, PNG or the like") from error
    except PIL.Image.DecompressionBombError as error:
        raise SurgeonError(f"the photo {path} has too many pixels", "Make it smaller first") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise any of these
        raise SurgeonError(f"the photo {path} cannot be read ({error})", "See that the file is whole") from error


def _flatten(photo: PIL.Image.Image) -> PIL.Image.Image:
    """`photo` as RGB: 16-bit grey scaled to 8 bits, transparency over white."""
    if photo.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if photo.mode.startswith("I"):
        values = numpy.asarray(photo).astype(numpy.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        return PIL.Image.fromarray((values / 257 + 0.5).astype(numpy.uint8)).convert("RGB")
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def image_of(session: Session) -> Image:
    """The bundle's `Image`: size, range and filter of its photos; raises SurgeonError where its input is no picture."""
    if session.manifest.image is None:
        shape = next(iter(session.manifest.artifacts.values())).inputs[0].shape
        channels_last = len(shape) == 4 and shape[-1] in (1, 3)
        remedy = "Run it from Python"
        if channels_last:
            remedy = "Export it with --preprocess none, which turns photos inside"
        raise SurgeonError(f"the input of {session.bundle.path} is not a picture, but {shape_text(shape)}", remedy)
    return session.manifest.image
