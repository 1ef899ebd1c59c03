"""Options that several commands share, each defined once."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import click.shell_completion

from surgeon.bundle.choices import choices
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


class CommaList(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them, as a tuple; `item`, a click type or a function of the text, reads each.

    With `unique` equal values count once; with `ascending` they are sorted, too. `words` are texts that stand for a
    whole list, such as {"none": ()}.
    """

    def __init__(
        self,
        item: click.ParamType[Any] | Callable[[str], Any],
        name: str,
        *,
        unique: bool = False,
        ascending: bool = False,
        words: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> None:
        self.item, self.name = click.types.convert_type(item), name
        self.unique, self.ascending, self.words = unique or ascending, ascending, words or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse `value`, unless it is parsed already."""
        if isinstance(value, tuple):
            return value
        if value in self.words:
            return self.words[value]
        items = [self.item.convert(text.strip(), param, ctx) for text in value.split(",")]
        items = list(dict.fromkeys(items)) if self.unique else items
        return tuple(sorted(items) if self.ascending else items)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """What may follow the last comma, behind all that is typed before it; words where nothing is."""
        before, comma, last = incomplete.rpartition(",")
        found = [item.value for item in self.item.shell_complete(ctx, param, last)]
        found += [word for word in self.words if not comma and word.startswith(last)]
        return [click.shell_completion.CompletionItem(before + comma + text) for text in found]


def _size(text: str) -> int:
    """One size of a shape."""
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is not a size. Write a shape such as 3,224,224 (without the batch).")
    return int(text)


SHAPE = CommaList(_size, "C,H,W")
"""The shape of one input, without the batch, as a tuple of positive integers."""


class GroupedCommand(click.Command):
    """A command whose `--help` lists options under the headings of `group`, and the rest under "Options"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, in the order of their first options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: param not in _HEADINGS):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(_HEADINGS.get(param, "Options"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_HEADINGS: weakref.WeakKeyDictionary[click.Parameter, str] = weakref.WeakKeyDictionary()


def group(heading: str, *decorators: Decorator) -> Decorator:
    """Options of a `GroupedCommand` under `heading`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(command, "__click_params__", ()))
        for decorator in reversed(decorators):
            command = decorator(command)
        added: list[click.Parameter] = vars(command)["__click_params__"][before:]
        _HEADINGS.update(dict.fromkeys(added, heading))
        return command

    return decorate


def field(kind: type, name: str, help: str, **options: Any) -> Decorator:
    """An option for the field `name` of the dataclass `kind`: its choices and its default are the field's."""
    offered = choices(kind, name)
    default = next(known.default for known in dataclasses.fields(kind) if known.name == name)
    shown = {"default": default, "show_default": True} if default else {}
    kinds = {"type": click.Choice(offered)} if offered else {}
    return click.option("--" + name.replace("_", "-"), help=help, **{**kinds, **shown, **options})


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
        from surgeon.network.sources import SourceOptions, resolve_with, two_samples
    except ImportError as error:
        raise SurgeonError(f"{error.name or 'torch'} is not installed, and this needs it", CONVERT) from error
    named = ":" not in model and not Path(model).suffix
    weights = "random" if named else None
    stated = SourceOptions(weights, input_shape, None, input, dict(extra_input))
    source = resolve_with(model, stated, calibrated=False)
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
