"""Options that several commands share, each defined once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.cli.extra_input_options import Stated
    from surgeon.network.sources import Samples, Source

CONVERT = "pip install 'surgeon[convert]', or '.[convert]' from a checkout"
"""What is missing where torch is."""


def number(above: float | None = None, infinite: bool = False) -> Callable[[str], float]:
    """An option's type: a number above `above` (None: any); NaN never, infinity only where it means something."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a number.") from None
        if math.isnan(value) or (math.isinf(value) and not infinite):
            raise click.BadParameter(f"{text} is not a finite number.")
        if above is not None and not value > above:
            raise click.BadParameter(f"{text} is not above {above:g}.")
        return value

    return convert


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Each KEY=VALUE; raises where one is not, or a key is given twice."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise click.BadParameter(f"{text!r} is not KEY=VALUE.")
        if key in found:
            raise click.BadParameter(f"{key} is given twice.")
        found[key] = value
    return found


Size = tuple[int, int] | str
"""Height and width, or NATIVE."""

NATIVE = "native"


class PhotoSize(click.ParamType[Size]):
    """SIDE as (SIDE, SIDE), H,W as (H, W), native as it is."""

    name = "SIDE|H,W|native"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """Parse `value`, unless it is parsed already."""
        if isinstance(value, tuple) or value == NATIVE:
            return value
        sides = [int(side) if side.strip().isdecimal() else 0 for side in value.split(",")]
        if len(sides) > 2 or min(sides) < 1:
            self.fail(f"{value!r} is no size such as 320, 240,320 or native.", param, ctx)
        return sides[0], sides[-1]


def network(
    model: str, input_shape: tuple[int, ...] | None, input: str | None, extra_input: Sequence[Stated]
) -> tuple[Source, Samples]:
    """The network that `model` names and two samples of its inputs, for commands that look at its structure alone.

    A named model gets random weights, which need no download.
    """
    try:
        from surgeon.network.sources import resolve, two_samples
    except ImportError as error:
        raise SurgeonError(f"{error.name or 'torch'} is not installed, and this needs it", CONVERT) from error
    named = ":" not in model and not Path(model).suffix
    weights = "random" if named else None
    source = resolve(model, weights=weights, input_shape=input_shape, input=input, extra_inputs=dict(extra_input))
    return source, two_samples(source)


bundle = click.argument("bundle", type=click.Path(path_type=Path))
photos = click.argument("photos", nargs=-1, required=True, metavar="PHOTO...", type=click.Path(path_type=Path))
targets = click.option(
    "--target", "targets", multiple=True, metavar="CLASS", help="Class by name or index; again for each photo."
)
units = click.option(
    "--unit",
    "units",
    multiple=True,
    metavar="[LAYER:]CHANNEL[,Y,X]",
    help="Of a bundle exported with --at: a channel of the layer, summed over its map, or one place of it (LAYER: if "
    "there are several); again for each photo.",
)
size = click.option(
    "--size",
    type=PhotoSize(),
    help="Of a bundle exported with --dynamic-size: the height and width that photos are resized and cropped to; "
    "native keeps each photo's own, which takes memory where it is large.  [default: the bundle's]",
)
steps = click.option("--steps", type=click.IntRange(min=1), help="Steps of the ascent.  [default: the bundle's]")
step_size = click.option(
    "--step-size", type=number(above=0), metavar="A", help="Length of a step.  [default: the bundle's]"
)
radius = click.option(
    "--radius",
    type=number(above=0, infinite=True),
    metavar="E",
    help="Largest norm of what is added; inf for no limit.  [default: the bundle's]",
)
temperature = click.option(
    "--temperature", type=number(above=0), metavar="T", help="Softness of the gates.  [default: the bundle's]"
)
device = click.option(
    "--device", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True, help="Where it runs."
)
provider_options = click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    callback=lambda ctx, param, texts: pairs(texts),
    metavar="KEY=VALUE",
    help="An option of ONNX Runtime's provider for that device, such as use_tf32=1, prefer_nhwc=1 or "
    "enable_cuda_graph=1; again for each.",
)
threads = click.option("--threads", type=click.IntRange(min=1), help="Processor threads.  [default: all cores]")
quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
silent = click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
