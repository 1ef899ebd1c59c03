"""Photos to network inputs, and arrays to pictures: single ones, and the grid of a figure. Torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from surgeon.artifacts.manifest import Image
from surgeon.errors import SurgeonError

Array = numpy.ndarray[Any, numpy.dtype[Any]]

SMALLEST = 8  # pixels: a photo with a shorter side has nothing to show
LONGEST = 20  # a side longer than this many shorter sides is refused: resizing would need memory without bound
_FILTERS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}

# --- photos


def load_photo(path: str | Path, image: Image, native: bool = False) -> Array:
    """The photo at `path` as f32 [C, H, W] in `image.range`, resized and cropped as the manifest's Image says.

    With `native` it keeps its own size instead. Turned upright by its EXIF orientation; transparency is laid over
    white; of an animation the first picture is taken. Raises SurgeonError, naming the file, where it is missing,
    unreadable, no picture, too small or too elongated.
    """
    if image.channels not in (1, 3):
        raise SurgeonError(f"the network takes {image.channels} channels, and a photo has 3", "Run it from Python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # large; Pillow refuses the dangerous
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
    # Downwards, as torchvision does, but for the rounding error of a side that is meant to be hit exactly.
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
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # whatever Pillow's decoders say of damaged files
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


# --- arrays


def to_picture(values: Array, image: Image) -> PIL.Image.Image:
    """The input `values` [C, H, W] in `image.range` as a picture; what lies in the margin beyond is cut."""
    low, high = image.range
    return _picture((values - low) / (high - low))


def difference(clean: Array, perturbed: Array, clip: float = 0.0) -> PIL.Image.Image:
    """What was added to the input, min-max scaled over the whole picture, as in the paper; grey where nothing was.

    `clip` is the percentage of values at either end of the range that is cut first: a few extreme pixels leave the
    others little contrast.
    """
    delta = numpy.asarray(perturbed - clean, numpy.float64)
    low, high = (float(end) for end in numpy.percentile(delta, (clip, 100 - clip)))
    return _picture((delta - low) / (high - low) if high > low else numpy.full_like(delta, 0.5))


def heat(pullback: Array) -> PIL.Image.Image:
    """A pullback [C, H, W] scaled by its largest absolute value: zero is mid grey in every picture."""
    largest = float(numpy.abs(pullback).max())
    return _picture(0.5 + 0.5 * numpy.asarray(pullback, numpy.float64) / (largest or 1.0))


def _picture(values: Array) -> PIL.Image.Image:
    """`values` [C, H, W] in [0, 1] as an 8-bit picture."""
    levels = (numpy.clip(values, 0, 1) * 255 + 0.5).astype(numpy.uint8).transpose(1, 2, 0)
    return PIL.Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).convert("RGB")


def format_of(path: Path) -> str:
    """Pillow's name of the format that the path's ending stands for; raises SurgeonError where it stands for none."""
    format = PIL.Image.registered_extensions().get(path.suffix.lower())
    if format is None or format not in PIL.Image.SAVE:
        raise SurgeonError(f"{path} has no ending that names a picture format", "Choose .png or .jpg")
    return format


def save(picture: PIL.Image.Image, path: Path) -> None:
    """Write `picture` beside `path` in the format that its ending names, then rename it.

    Raises SurgeonError, and leaves nothing, where the ending names no format or the file cannot be written.
    """
    format = format_of(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format=format, quality=90)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # such as a folder that is a file: the first error says so
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SurgeonError(f"{path} cannot be written ({error.strerror or error})") from error
        raise


# --- grids

_INK, _SOFT_INK, _ACCENT = "#1a1a1a", "#6b6b6b", "#c8452d"
_GAP, _MARGIN, _FRAME = 8, 24, 3  # pixels


@dataclass(frozen=True)
class Cell:
    """One picture of a grid, the line beneath it, and whether it is framed."""

    picture: PIL.Image.Image
    caption: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Panel:
    """A titled block of rows; `headings` stand over its columns."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def grid(panels: Sequence[Panel], title: str = "", footer: str = "", side: int = 192) -> PIL.Image.Image:
    """The panels one beneath the other on white, pictures `side` pixels wide; text that does not fit is shortened."""
    columns = max(len(row) for panel in panels for row in panel.rows)
    width = max(2 * _MARGIN + columns * (side + _GAP) - _GAP, 640)
    first = panels[0].rows[0][0].picture
    tall = round(side * first.height / first.width)
    canvas = PIL.Image.new("RGB", (width, _height(panels, title, footer, tall, width)), "white")
    draw = PIL.ImageDraw.Draw(canvas)
    y = _MARGIN
    if title:
        draw.text((_MARGIN, y), _shorten(title, 24, width - 2 * _MARGIN), _INK, _font(24))
        y += 40
    for panel in panels:
        y = _draw_panel(canvas, draw, panel, y, (side, tall), width)
    for line in _lines(footer, width):
        draw.text((_MARGIN, y), line, _SOFT_INK, _font(13))
        y += 18
    return canvas


def _height(panels: Sequence[Panel], title: str, footer: str, tall: int, width: int) -> int:
    rows = sum(len(panel.rows) * (tall + _caption_height(panel) + _GAP) + 30 + 24 + 16 for panel in panels)
    return 2 * _MARGIN + (40 if title else 0) + rows + 18 * len(_lines(footer, width))


def _caption_height(panel: Panel) -> int:
    return 20 if any(cell.caption for row in panel.rows for cell in row) else 0


def _draw_panel(
    canvas: PIL.Image.Image, draw: PIL.ImageDraw.ImageDraw, panel: Panel, y: int, size: tuple[int, int], width: int
) -> int:
    """Draw one panel from height `y` down; return the height below it."""
    side, tall = size
    draw.text((_MARGIN, y), _shorten(panel.title, 17, width - 2 * _MARGIN), _INK, _font(17))
    y += 30
    for column, heading in enumerate(panel.headings):
        middle = _MARGIN + column * (side + _GAP) + side // 2
        draw.text((middle, y), _shorten(heading, 14, side), _SOFT_INK, _font(14), anchor="ma")
    y += 24
    for row in panel.rows:
        for column, cell in enumerate(row):
            x = _MARGIN + column * (side + _GAP)
            # Photos may have several shapes: white is put beside those that are not as the first.
            canvas.paste(PIL.ImageOps.pad(cell.picture, size, PIL.Image.Resampling.LANCZOS, "white"), (x, y))
            if cell.framed:
                box = (x - _FRAME, y - _FRAME, x + side + _FRAME - 1, y + tall + _FRAME - 1)
                draw.rectangle(box, outline=_ACCENT, width=_FRAME)
            caption = _shorten(cell.caption, 13, side)
            draw.text((x + side // 2, y + tall + 3), caption, _SOFT_INK, _font(13), anchor="ma")
        y += tall + _caption_height(panel) + _GAP
    return y + 16


@functools.lru_cache
def _font(size: int) -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.load_default(size=size)


def _shorten(text: str, size: int, width: int) -> str:
    """`text`, cut and ended by an ellipsis where it is wider than `width` pixels."""
    text = _drawable(text)
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _drawable(text: str) -> str:
    """`text` in the letters that Pillow's own font has: accents go, what is not Latin becomes a question mark."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode("ascii")


def _lines(text: str, width: int) -> list[str]:
    """`text` in lines that fit the canvas."""
    lines: list[str] = []
    for word in _drawable(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(13).getlength(longer) <= width - 2 * _MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
