"""`surgeon run`: ascents from photos towards a class, and their pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options, others
from surgeon.errors import SurgeonError
from surgeon.interruption import Interrupted, kept

if TYPE_CHECKING:
    import numpy
    import PIL.Image

    from surgeon.runtime import Session, Step

Top = list[dict[str, Any]]
Target = int | tuple[int | str, ...]
"""A class, or a unit of a layer."""
KINDS = ("clean", "perturbed", "difference", "pullback")


EXAMPLES = """\b
Examples:
  surgeon run exported/lite0 cat.jpg --target "tiger cat" --steps 10
  surgeon run exported/lite0 cat.jpg dog.jpg --target goldfish --target 207 --json
  surgeon run exported/lite0-any cat.jpg --size 320,480
  surgeon run exported/resnet50-layer3 cat.jpg --unit 17
  surgeon run exported/resnet50-layer3 cat.jpg --unit 17,6,6
  surgeon run exported/resnet50-layers cat.jpg --unit layer2:40"""


@click.command("run", epilog=EXAMPLES)
@options.bundle
@options.photos
@options.targets
@options.units
@options.size
@options.steps
@options.step_size
@options.radius
@options.temperature
@others.given
@click.option("--descend", is_flag=True, help="Walk away from the class instead of towards it.")
@options.device
@options.provider_options
@options.threads
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("exported/pictures"), show_default=True)
@options.silent
@options.as_json
def command(
    bundle: Path,
    photos: tuple[Path, ...],
    targets: tuple[str, ...],
    units: tuple[str, ...],
    also: tuple[str, ...],
    size: options.Size | None,
    descend: bool,
    step_size: float | None,
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    output: Path,
    quiet: bool,
    as_json: bool,
    **scalars: Any,
) -> None:
    """Change each PHOTO step by step along its pullback, so that BUNDLE's network sees more of a class or unit in it.

    Writes NAME.clean.png, NAME.perturbed.png, NAME.difference.png and NAME.pullback.png, and shows the five most
    probable classes before and after. Without --target, the class is what the network sees in the photo. NAME.pullback
    is the clean photo's. A bundle that was exported with --at climbs a unit of those layers: --unit. Where a network
    gives a map for each class, as segmentation does, --target climbs its sum, and --unit one place of it. Ctrl-C keeps
    the photos that are done.
    """
    from surgeon.cli import screen
    from surgeon.runtime import load

    with screen.waiting("open the bundle", quiet):
        session = load(bundle, device, threads, provider_options)
    defaults = session.manifest.defaults
    length = defaults.step_size if step_size is None else step_size
    settings = {**scalars, "step_size": -length if descend else length}
    settings = {name: getattr(defaults, name) if value is None else value for name, value in settings.items()}
    per_gate = session.manifest.recipe.temperature_input == "per-gate"
    if scalars["temperature"] is None and (per_gate or not takes_temperature(session)):
        settings["temperature"] = None
    wanted = choose_targets(session, photos, targets, units)
    beside = others.read(session, also)
    images = [read_photo(session, photo, size) for photo in photos]  # every photo, before the first is computed
    names = file_names(photos)
    spare_photos(photos, [path for name in names for path in picture_paths(output, name).values()])

    def climbed() -> Iterator[dict[str, Any]]:
        for photo, name, image, target in zip(photos, names, images, wanted, strict=True):
            progress.update(task, description=photo.name)
            result = ascend(session, image, target, settings, lambda: progress.advance(task), beside)
            paths = write_pictures(output, name, result.pop("pictures"))
            yield {"photo": str(photo), "size": list(image.shape[1:]), **result, "files": paths}

    with screen.progress(quiet) as progress:
        task = progress.add_task("", total=len(photos) * (settings["steps"] + 1))
        results, interrupted = kept(climbed())
    screen.print_strays(screen.console(error=True), session.off_device, session.behind)
    if as_json:
        screen.print_json({"bundle": str(bundle), "device": device, "settings": settings, "photos": results})
    elif not quiet:
        console = screen.console()
        for result in results:
            _print_result(console, result, settings)
        console.print(f"pictures: {output}{os.sep}NAME.{{clean,perturbed,difference,pullback}}.png", style="dim")
    if interrupted:
        raise Interrupted(f"interrupted after {len(results)} of {len(photos)} photos; their pictures are in {output}")


def ascend(
    session: Session,
    image: numpy.ndarray,
    target: Target | None,
    settings: dict[str, Any],
    tick: Callable[[], None],
    beside: dict[str, numpy.ndarray] | None = None,
) -> dict[str, Any]:
    """One ascent from `image` [C, H, W]: target or unit, top classes, score per step, and the pictures.

    `beside` is what else the network takes, by name, for a batch of one.
    """
    from surgeon import pictures

    start = image[None]
    cotangent = None
    if session.manifest.recipe.objective != "energy":
        if target is None:
            target = predicted(session, image, beside)
        cotangent = cotangents(session, [target], image)
    clean: Step | None = None
    scores = []
    for step in session.steps(start, cotangent, **settings, others=beside):
        clean = clean or step
        scores.append(float(step.score[0]))
        tick()
    assert clean is not None
    layout = image_of(session)
    return {
        "target": {"index": target, "label": session.label(target)} if isinstance(target, int) else None,
        **({"unit": _unit(session, target)} if isinstance(target, tuple) else {}),
        "before": _top(session, clean),
        "after": _top(session, step),
        "score": scores,
        "pictures": {
            "clean": pictures.to_picture(image, layout),
            "perturbed": pictures.to_picture(step.perturbed[0], layout),
            "difference": pictures.difference(image, step.perturbed[0]),
            "pullback": pictures.heat(clean.pullback[0]),
        },
    }


def _unit(session: Session, unit: tuple[int | str, ...]) -> dict[str, Any]:
    """The unit as facts; its name where channels have names."""
    layer, place = session.place(unit)
    named = {"label": session.label(unit)} if session.manifest.labels else {}
    return {"layer": layer or None, "place": list(place), **named}


def predicted(session: Session, image: numpy.ndarray, beside: dict[str, numpy.ndarray] | None = None) -> int:
    """The class that the network sees in `image` [C, H, W]."""
    import numpy

    nothing = numpy.zeros((1, session.classes), numpy.float32)
    return int(session.pullback(image[None], nothing, others=beside).output[0].argmax())


def cotangents(session: Session, targets: Sequence[Target], image: numpy.ndarray) -> numpy.ndarray:
    """One row for each target, classes or units, at the output for `image` [C, H, W]."""
    units = [target for target in targets if isinstance(target, tuple)]
    if units:
        return session.at_units(units, session.output_shape_at(image[None]))
    return session.one_hot([one for one in targets if isinstance(one, int)])


def read_targets(session: Session, targets: Sequence[str], units: Sequence[str]) -> list[Target]:
    """What --target or --unit names; raises where the bundle has the other, or units and none is named.

    Where the output is a map for each class, a target is that map, summed.
    """
    if session.manifest.recipe.objective == "energy":
        if targets or units:
            raise SurgeonError(
                "the bundle's objective is energy, which has no target class or unit", "Leave --target and --unit out"
            )
        return []
    maps = not session.has_classes and session.manifest.labels
    if not session.has_classes and ((targets and not maps) or not (targets or units)):
        session.one_hot([])  # says which units there are
    classes = [session.target(text) for text in targets]
    return [*((index,) if maps else index for index in classes), *map(session.unit, units)]


def choose_targets(
    session: Session, photos: Sequence[Path], targets: Sequence[str], units: Sequence[str]
) -> list[Target | None]:
    """The class or unit for each photo: one for all, one for each, or None for what the network sees."""
    chosen: list[Target | None] = [*read_targets(session, targets, units)]
    if len(chosen) not in (0, 1, len(photos)):
        what = "units" if units else "targets"
        raise click.UsageError(f"{len(photos)} photos have {len(chosen)} {what}: give one, or one for each.")
    return chosen if len(chosen) == len(photos) else (chosen or [None]) * len(photos)


def read_photo(session: Session, photo: Path, size: options.Size | None) -> numpy.ndarray:
    """The photo as the bundle's input [C, H, W], of `size` or else of the bundle's; raises where it takes no other."""
    from surgeon.pictures import at_size, load_photo

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
    """Raise SurgeonError for a size whose input alone is more than there is memory: the system would end the process.

    A run needs many times as much, and how many, nobody knows beforehand.
    """
    from surgeon.cli.screen import size_text
    from surgeon.memory import installed

    needed, there = 4 * channels * height * width, installed()
    if there is not None and needed > there:
        raise SurgeonError(
            f"an input of {height}x{width} takes {size_text(needed)}, and this machine has {size_text(there)}",
            "Give a smaller --size",
        )


def image_of(session: Session) -> Any:
    """How the bundle takes photos; raises SurgeonError where its input is no picture."""
    from surgeon.feeds import shape_text

    if session.manifest.image is None:
        shape = next(iter(session.manifest.artifacts.values())).inputs[0].shape
        turned = len(shape) == 4 and shape[-1] in (1, 3)
        remedy = "Export it with --preprocess none, which turns photos inside" if turned else "Run it from Python"
        raise SurgeonError(f"the input of {session.bundle.path} is not a picture, but {shape_text(shape)}", remedy)
    return session.manifest.image


def takes_temperature(session: Session) -> bool:
    """Whether any artifact has the input: where every gate is hard, none has."""
    artifacts = session.manifest.artifacts.values()
    return any(port.name == "temperature" for artifact in artifacts for port in artifact.inputs)


def file_names(photos: Sequence[Path]) -> list[str]:
    """A name for each photo's pictures, its stem; numbered where two photos would share it."""
    taken: set[str] = set()
    names = []
    for photo in photos:
        name, number = photo.stem, 1
        while name.casefold() in taken:  # file systems may not tell Cat from cat
            number += 1
            name = f"{photo.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def picture_paths(folder: Path, name: str) -> dict[str, Path]:
    """Where each kind of picture goes."""
    return {kind: folder / f"{name}.{kind}.png" for kind in KINDS}


def spare_photos(photos: Sequence[Path], written: Sequence[Path]) -> None:
    """Raise SurgeonError where writing `written` would replace one of `photos`."""
    given = {photo.resolve() for photo in photos}
    for path in written:
        if path.resolve() in given:
            raise SurgeonError(f"{path} is one of the photos, and would be overwritten", "Give another place with -o")


def write_pictures(folder: Path, name: str, pictures: dict[str, PIL.Image.Image]) -> dict[str, str]:
    """Write NAME.KIND.png for each picture; return the paths by kind. Each is written beside and renamed."""
    from surgeon.pictures import save

    paths = picture_paths(folder, name)
    for kind, picture in pictures.items():
        save(picture, paths[kind])
    return {kind: str(path) for kind, path in paths.items()}


def _top(session: Session, step: Step) -> Top:
    from surgeon.runtime import top

    if not session.has_classes:
        return []
    return [
        {"index": index, "label": session.label(index), "probability": probability}
        for index, probability in top(step.output[0])
    ]


def _print_result(console: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    """The photo's most probable classes before and after, side by side."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    target, unit, score = result["target"], result.get("unit"), result["score"]
    towards = f" → {target['label']} ({target['index']})" if target else ""
    if unit:
        name = f" ({unit['label']})" if "label" in unit else ""
        towards = f" → {unit['layer'] or 'output'} unit {','.join(map(str, unit['place']))}{name}"
    console.print(Text(result["photo"] + towards, style="bold"), soft_wrap=True)
    if not result["before"]:
        console.print(f"score {score[0]:.4g} → {score[-1]:.4g}\n", style="dim")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("before", "", f"after {settings['steps']} steps", " "):
        table.add_column(column, justify="left" if column.strip() else "right")
    for before, after in zip(result["before"], result["after"], strict=True):
        cells: list[Text | str] = []
        for entry in (before, after):
            chosen = target is not None and entry["index"] == target["index"]
            cells += [Text(entry["label"], "green" if chosen else ""), f"{100 * entry['probability']:.1f} %"]
        table.add_row(*cells)
    console.print(table)
    console.print(f"score {score[0]:.4g} → {score[-1]:.4g}\n", style="dim")
