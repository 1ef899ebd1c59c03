"""`surgeon evaluate`: how faithful pullbacks are as explanations, beside those of other gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.cli import options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, collect_until_interrupt
from surgeon.runtime.targets import predicted

if TYPE_CHECKING:
    from surgeon.analysis.evaluate.evaluation import Measured

EXAMPLES = """\b
Examples:
  surgeon evaluate exported/lite0 photos/*.jpg --against exported/lite0-hard --against exported/lite0-guided
  surgeon evaluate exported/lite0 cat.jpg --temperature 0.3 --temperature 1 --target "tiger cat" --json
  surgeon evaluate exported/lite0 *.jpg --against gradient=exported/lite0-hard --smoothgrad 0 --plot curves.svg

\b
Measures:
  insertion, deletion  area under the class's probability as the photo comes out of a blurred one, or
                       goes into grey, most important pixels first (Petsiuk et al. 2018)
  infidelity           share of the logit's changes that the explanation, scaled at best, does not
                       predict, as squares of the photo go grey (Yeh et al. 2019)
  max-sensitivity      largest distance between the maps of the photo and of photos nearby (Yeh et al. 2019)
  class sensitivity    1 - correlation with the maps of random classes (after Sixt et al. 2020)"""


def _against(text: str) -> tuple[str, Path]:
    """NAME=BUNDLE as (NAME, BUNDLE), BUNDLE as ("", BUNDLE)."""
    name, equals, path = text.rpartition("=")
    if equals and not (name.strip() and path):
        raise click.BadParameter(f"{text!r} is not NAME=BUNDLE.")
    return name.strip(), Path(path)


@click.command("evaluate", epilog=EXAMPLES)
@options.bundle
@options.photos
@options.targets
@click.option(
    "--against",
    multiple=True,
    type=_against,
    metavar="[NAME=]BUNDLE",
    help="Another bundle of the same network, such as one with hard gates; NAME, or else its gate, names its row. "
    "Repeatable.",
)
@click.option(
    "--temperature",
    "temperatures",
    type=options.number(above=0),
    multiple=True,
    metavar="T",
    help="Softness of BUNDLE's gates; each is a row when repeated.  [default: the bundle's]",
)
@click.option(
    "--smoothgrad",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="Where a bundle has hard gates, also average its gradients over N noisy photos; 0: do not.",
)
@click.option(
    "--map",
    "map_",
    type=click.Choice(["abs", "max", "product"]),
    default="abs",
    show_default=True,
    help="How a pullback g of the photo x becomes a map: the sum over channels of |g|, the largest |g|, or the sum "
    "of x * g.",
)
@click.option(
    "--curve-points",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Points of each curve, less one.",
)
@click.option(
    "--perturbation",
    type=click.Choice(["squares", "noise"]),
    default="squares",
    show_default=True,
    help="The changes of infidelity: squares of the photo go grey, or noise lies over all of it.",
)
@click.option(
    "--perturbations", type=click.IntRange(min=2), default=64, show_default=True, help="Changed photos of infidelity."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=10, show_default=True, help="Photos nearby of max-sensitivity."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every random draw.")
@options.size
@options.device
@options.provider_options
@options.threads
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw curves and means: .png, .svg or .pdf."
)
@options.quiet
@options.as_json
def command(
    bundle: Path,
    photos: tuple[Path, ...],
    targets: tuple[str, ...],
    against: tuple[tuple[str, Path], ...],
    temperatures: tuple[float, ...],
    smoothgrad: int,
    map_: str,
    size: options.Size | None,
    device: str,
    provider_options: dict[str, str],
    threads: int | None,
    plot: Path | None,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure how faithful BUNDLE's pullbacks are to its network, as explanations of its answer to each PHOTO.

    The class explained is the network's most probable one for the photo, or that of --target. The last row is random
    noise; its score is each metric's baseline. Every random draw depends on --seed and the photo alone, and is the same
    for all methods. Ctrl-C keeps the photos that are done.
    """
    from surgeon.analysis.evaluate import evaluation, explanations, methods
    from surgeon.analysis.figures import plots
    from surgeon.analysis.same_network import require_same_network, require_same_weights
    from surgeon.cli import screen
    from surgeon.cli.reports import evaluation_report
    from surgeon.runtime.photos import image_of
    from surgeon.runtime.session import load

    if plot is not None:
        plots.require(plot)  # before the work, not after it
        spare_photos(photos, [plot])
    with screen.waiting("open the bundles", quiet):
        session = load(bundle, device, threads, provider_options)
        methods.require_classes(session)
        baselines = [(name, load(path, device, threads, provider_options)) for name, path in against]
    for _, other in baselines:
        require_same_network(session, other)
    wanted = choose_targets(session, photos, targets, ())
    images = [read_photo(session, photo, size) for photo in photos]
    settings = evaluation.Settings(map=map_, others=min(evaluation.Settings.others, session.classes - 1), **chosen)
    with screen.progress(quiet) as progress:
        task = progress.add_task("", total=None)

        def tick(count: int) -> None:
            progress.advance(task, count)

        rows = methods.choose(session, baselines, temperatures, smoothgrad, settings.seed, tick)
        for _, other in baselines:
            require_same_weights(session, other, images[0])
        progress.update(task, total=len(photos) * evaluation.passes(rows, settings), completed=0)
        layout = image_of(session)
        network = explanations.network(session, tick)

        def looked() -> Iterator[tuple[Path, int, dict[str, Measured]]]:
            for photo, image, target in zip(photos, images, wanted, strict=True):
                progress.update(task, description=photo.name)
                index = target if isinstance(target, int) else predicted(session, image)
                yield photo, index, evaluation.measure(image, index, network, rows, layout, settings)

        results, interrupted = collect_until_interrupt(looked())
    measured = [result for _, _, result in results]
    if plot is not None:
        plots.evaluation(measured, rows, plot)
    screen.warn_off_device(session, *(other for _, other in baselines))
    if as_json:
        screen.print_json(evaluation_report.facts(session, results, rows, settings, device))
    else:
        evaluation_report.show(screen.console(), measured, rows, settings, plot)
    if interrupted:
        raise Interrupted(f"interrupted after {len(results)} of {len(photos)} photos; the figures are of those")
