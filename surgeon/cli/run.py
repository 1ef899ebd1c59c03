"""`surgeon run`: ascents from photos towards a class, and their pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from surgeon.cli import extra_input_options, options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, collect_until_interrupt

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
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("exported/pictures"),
    show_default=True,
    help="The folder that the pictures go into.",
)
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
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    output: Path,
    quiet: bool,
    as_json: bool,
    **scalars: Any,
) -> None:
    """Change each PHOTO step by step along its pullback, so that BUNDLE's network sees more of a class or unit in it.

    Writes NAME.clean.png, NAME.perturbed.png, NAME.difference.png and NAME.pullback.png, and prints the five most
    probable classes before and after. Without --target, the class is the network's most probable one for the photo.
    NAME.pullback is the clean photo's. A bundle that was exported with --at climbs a unit of those layers: --unit.
    Where a network gives a map for each class, as segmentation does, --target climbs its sum, and --unit one place of
    it. Ctrl-C keeps the photos that are done.
    """
    from surgeon.cli import screen
    from surgeon.cli.reports import ascents
    from surgeon.runtime.photo_ascent import ascend, file_names, picture_paths, with_defaults, write_pictures
    from surgeon.runtime.session import load

    with screen.waiting("open the bundle", quiet):
        session = load(bundle, device, threads, provider_options)
    settings = with_defaults(session, scalars)
    settings["step_size"] *= -1 if descend else 1
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
    screen.warn_off_device(session)
    if as_json:
        screen.print_json({"bundle": str(bundle), "device": device, "settings": settings, "photos": results})
    elif not quiet:
        console = screen.console()
        for result in results:
            ascents.show(console, result)
        console.print(f"pictures: {output}{os.sep}NAME.{{clean,perturbed,difference,pullback}}.png", style="dim")
    if interrupted:
        raise Interrupted(f"interrupted after {len(results)} of {len(photos)} photos; their pictures are in {output}")
