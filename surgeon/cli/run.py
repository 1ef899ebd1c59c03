"""`surgeon run`: ascents from photos towards a class, and their pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import extra_input_options, options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, collect_until_interrupt
from surgeon.runtime.photos import image_of
from surgeon.runtime.targets import Target, cotangents, predicted, takes_temperature

if TYPE_CHECKING:
    import numpy
    import PIL.Image

    from surgeon.runtime.session import AscentState, Session

Top = list[dict[str, Any]]
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
@extra_input_options.given
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
    extra_input: tuple[str, ...],
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
    from surgeon.runtime.session import load

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
    extra_inputs = extra_input_options.read(session, extra_input)
    images = [read_photo(session, photo, size) for photo in photos]  # every photo, before the first is computed
    names = file_names(photos)
    spare_photos(photos, [path for name in names for path in picture_paths(output, name).values()])

    def climbed() -> Iterator[dict[str, Any]]:
        for photo, name, image, target in zip(photos, names, images, wanted, strict=True):
            progress.update(task, description=photo.name)
            result = ascend(session, image, target, settings, lambda: progress.advance(task), extra_inputs)
            paths = write_pictures(output, name, result.pop("pictures"))
            yield {"photo": str(photo), "size": list(image.shape[1:]), **result, "files": paths}

    with screen.progress(quiet) as progress:
        task = progress.add_task("", total=len(photos) * (settings["steps"] + 1))
        results, interrupted = collect_until_interrupt(climbed())
    screen.warn_off_device(screen.console(error=True), session.off_device, session.fallback)
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
    extra_inputs: dict[str, numpy.ndarray] | None = None,
) -> dict[str, Any]:
    """One ascent from `image` [C, H, W]: target or unit, top classes, score per step, and the pictures.

    `extra_inputs` is what else the network takes, by name, for a batch of one.
    """
    from surgeon.runtime import pictures

    start = image[None]
    cotangent = None
    if session.manifest.recipe.objective != "energy":
        if target is None:
            target = predicted(session, image, extra_inputs)
        cotangent = cotangents(session, [target], image)
    clean: AscentState | None = None
    scores = []
    for step in session.steps(start, cotangent, **settings, extra_inputs=extra_inputs):
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


def write_pictures(folder: Path, name: str, pictures: dict[str, PIL.Image.Image]) -> dict[str, str]:
    """Write NAME.KIND.png for each picture; return the paths by kind. Each is written beside and renamed."""
    from surgeon.runtime.pictures import save

    paths = picture_paths(folder, name)
    for kind, picture in pictures.items():
        save(picture, paths[kind])
    return {kind: str(path) for kind, path in paths.items()}


def _top(session: Session, step: AscentState) -> Top:
    from surgeon.runtime.session import top

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
