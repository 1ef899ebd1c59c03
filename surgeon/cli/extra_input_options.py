"""The options of networks with several inputs: `--input`, and `--extra-input` for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    import numpy

    from surgeon.bundle.manifest import Port
    from surgeon.runtime.session import Session

Stated = tuple[str, tuple[Any, ...]]
"""Name and shape, (1, 64, 64), or name and that with a dtype, ((1, 64, 64), "int64")."""


def _stated(text: str) -> Stated:
    """NAME=SHAPE:DTYPE as (NAME, (SHAPE, DTYPE)), NAME=SHAPE as (NAME, SHAPE); the shape of a number is empty."""
    name, equals, described = text.partition("=")
    shape, _, dtype = described.partition(":")
    try:
        sizes = tuple(int(size) for size in shape.split(",") if size)
    except ValueError:
        sizes = (0,)
    if not (name and equals) or min(sizes, default=1) < 1:
        raise click.BadParameter(f"{text!r} is not NAME=SHAPE[:DTYPE], such as mask=1,64,64 or step=:int64.")
    return name, (sizes, dtype) if dtype else sizes


def described(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that convert: the input that is pulled back to, and the shapes of the others."""
    extra_input = click.option(
        "--extra-input", multiple=True, type=_stated, metavar="NAME=SHAPE[:DTYPE]",
        help="Another input of the network: the shape of one sample, and float32, int64, int32 or bool. Repeatable.",
    )  # fmt: skip
    which = click.option("--input", "input", metavar="NAME", help="The input that is pulled back to.  [default: first]")
    return which(extra_input(command))


given = click.option(
    "--extra-input", multiple=True, metavar="NAME=FILE|NUMBER",
    help="Another input of the network: a photo, a .npy file of one sample, or a number for all of it. Repeatable.",
)  # fmt: skip


def read(session: Session, extra_input: Sequence[str]) -> dict[str, numpy.ndarray]:
    """The values of `--extra-input`, by name, each a batch of one; raises SurgeonError for wrong names and shapes."""
    ports = {port.name: port for port in session.extra_inputs}
    values = {}
    for text in extra_input:
        name, _, value = text.partition("=")
        if name not in ports:
            takes = f"It takes {', '.join(ports)}" if ports else "It takes nothing but photos"
            raise SurgeonError(f"the network takes no {name!r}", takes)
        values[name] = _value(session, ports[name], value)[None]
    missing = [name for name in ports if name not in values]
    if missing:
        raise SurgeonError(
            f"the network takes {', '.join(missing)} beside the photo", f"Give --extra-input {missing[0]}=FILE|NUMBER"
        )
    return values


def _value(session: Session, port: Port, text: str) -> numpy.ndarray:
    """One sample for `port`."""
    import numpy

    shape, path = tuple(int(size) for size in port.shape[1:]), Path(text)
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        return _exactly(numpy.full(shape, number), port, text)
    image = session.manifest.image
    if path.suffix != ".npy":
        if image is None or shape != (image.channels, image.height, image.width):
            raise SurgeonError(f"{port.name} is no picture, and {text!r} no number", "Give a .npy file, or a number")
        from surgeon.runtime.photos import load_photo

        return load_photo(path, image)
    try:
        value = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SurgeonError(f"{path} cannot be read ({error})", "Write it with numpy.save") from error
    if value.shape != shape:
        remedy = "Leave out the batch" if value.shape[1:] == shape else "Give one sample of that shape"
        raise SurgeonError(f"{path} has shape {list(value.shape)}, and {port.name} is {list(shape)}", remedy)
    return _exactly(value, port, text)


def _exactly(value: numpy.ndarray, port: Port, text: str) -> numpy.ndarray:
    """`value` in the dtype of `port`; refused where an integer or a bool would be another number."""
    import numpy

    with numpy.errstate(invalid="ignore"):  # of NaN; the comparison tells
        cast = value.astype(port.dtype)
    if not numpy.issubdtype(cast.dtype, numpy.floating) and not numpy.array_equal(cast, value):
        raise SurgeonError(f"{port.name} is {port.dtype}, which {text} is not", "Give numbers that it can hold")
    return cast
