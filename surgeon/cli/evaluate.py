"""`surgeon evaluate`: how faithful pullbacks are as explanations, beside those of other gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.analysis.same_network import require_same_network
from surgeon.cli import options
from surgeon.cli.photos import choose_targets, read_photo, spare_photos
from surgeon.errors import Interrupted, SurgeonError, collect_until_interrupt
from surgeon.runtime.photos import image_of
from surgeon.runtime.targets import Target, predicted, takes_temperature

if TYPE_CHECKING:
    import numpy

    from surgeon.analysis.evaluate.evaluation import Measured
    from surgeon.analysis.evaluate.explanations import Method
    from surgeon.runtime.session import Session

LEVEL = 0.15
"""SmoothGrad's noise, in ranges of a photo's pixels: the middle of what its paper recommends."""

EXAMPLES = """\b
Examples:
  surgeon evaluate exported/lite0 photos/*.jpg --against exported/lite0-hard --against exported/lite0-guided
  surgeon evaluate exported/lite0 cat.jpg --temperature 0.3 --temperature 1 --target "tiger cat" --json
  surgeon evaluate exported/lite0 *.jpg --against gradient=exported/lite0-hard --smoothgrad 0 --plot curves.svg

\b
Measures:
  insertion, deletion  area under the class's probability as the photo comes out of a blurred one, or
                       goes into grey, most important pixels first (Petsiuk et al. 2018)
  infidelity           share of the changes of the logit that the explanation, scaled at best, does not
                       foretell, as squares of the photo go grey (Yeh et al. 2019)
  max-sensitivity      how far the map of a photo nearby is from the photo's (Yeh et al. 2019)
  class sensitivity    1 - correlation with the maps of random classes (after Sixt et al. 2020)"""


class Against(click.ParamType[tuple[str, Path]]):
    """NAME=BUNDLE as (NAME, BUNDLE), BUNDLE as ("", BUNDLE)."""

    name = "[NAME=]BUNDLE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        """Parse `value`, unless it is parsed already."""
        if isinstance(value, tuple):
            return value
        name, equals, path = value.rpartition("=")
        if equals and not (name.strip() and path):
            self.fail(f"{value!r} is not NAME=BUNDLE.", param, ctx)
        return name.strip(), Path(path)


@click.command("evaluate", epilog=EXAMPLES)
@options.bundle
@options.photos
@options.targets
@click.option(
    "--against",
    multiple=True,
    type=Against(),
    help="Another bundle of the same network, such as one with hard gates; NAME is its row's, or else its gate. "
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
    help="Where a bundle has hard gates, also the mean of its gradients over N noisy photos; 0: not.",
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
    help="Steps of each curve.",
)
@click.option(
    "--perturbation",
    type=click.Choice(["squares", "noise"]),
    default="squares",
    show_default=True,
    help="What infidelity changes: squares of the photo to grey, or all of it by a little noise.",
)
@click.option(
    "--perturbations", type=click.IntRange(min=2), default=64, show_default=True, help="Changed photos of infidelity."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=10, show_default=True, help="Photos nearby of max-sensitivity."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random.")
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
    """Measure how faithful BUNDLE's pullbacks are to its network, as explanations of what it sees in each PHOTO.

    The class explained is what the network sees in the photo, or that of --target. The last row is noise, which
    explains nothing: what a measure gives to that is given for nothing. Every random draw is fixed by --seed and the
    photo, and is the same for all methods. Ctrl-C keeps the photos that are done.
    """
    from surgeon.analysis.evaluate import explanations
    from surgeon.analysis.evaluate.evaluation import Settings, measure, passes
    from surgeon.analysis.figures import plots
    from surgeon.cli import screen
    from surgeon.cli.reports import evaluation_report
    from surgeon.runtime.session import load

    if plot is not None:
        plots.require(plot)  # before the work, not after it
        spare_photos(photos, [plot])
    with screen.waiting("open the bundles", quiet):
        session = load(bundle, device, threads, provider_options)
        _require_classes(session)
        baselines = [(name, load(path, device, threads, provider_options)) for name, path in against]
    for _, other in baselines:
        require_same_network(session, other)
    wanted = choose_targets(session, photos, targets, ())
    images = [read_photo(session, photo, size) for photo in photos]
    settings = Settings(map=map_, others=min(Settings.others, session.classes - 1), **chosen)
    with screen.progress(quiet) as progress:
        task = progress.add_task("", total=None)

        def tick(count: int) -> None:
            progress.advance(task, count)

        methods = _methods(session, baselines, temperatures, smoothgrad, settings.seed, tick)
        for _, other in baselines:
            _require_same_weights(session, other, images[0])
        progress.update(task, total=len(photos) * passes(methods, settings), completed=0)

        def looked() -> Iterator[tuple[Path, int, dict[str, Measured]]]:
            for photo, image, target in zip(photos, images, wanted, strict=True):
                progress.update(task, description=photo.name)
                seen = _class(session, image, target)
                network = explanations.network(session, tick)
                yield photo, seen, measure(image, seen, network, methods, image_of(session), settings)

        results, interrupted = collect_until_interrupt(looked())
    measured = [result for _, _, result in results]
    if plot is not None:
        plots.evaluation(measured, methods, plot)
    for one in (session, *(other for _, other in baselines)):
        screen.warn_off_device(screen.console(error=True), one.off_device, one.fallback)
    if as_json:
        screen.print_json(evaluation_report.facts(session, results, methods, settings, device))
    else:
        evaluation_report.show(screen.console(), measured, methods, settings)
        if plot is not None:
            click.echo(f"plot: {plot}")
    if interrupted:
        raise Interrupted(f"interrupted after {len(results)} of {len(photos)} photos; the figures are of those")


def _methods(
    session: Session,
    baselines: Sequence[tuple[str, Session]],
    temperatures: Sequence[float],
    samples: int,
    seed: int,
    tick: Callable[[int], object],
) -> list[Method]:
    """A row for each bundle and temperature, SmoothGrad of the first hard one, and noise; raises for a name twice."""
    from surgeon.analysis.evaluate import explanations

    gate = session.manifest.recipe.gate
    if temperatures and not takes_temperature(session):
        raise SurgeonError(f"the bundle {session.bundle.path} takes no temperature", "Leave --temperature out")
    rows: list[tuple[str, float | None]] = [(gate, next(iter(temperatures), None))]
    if len(temperatures) > 1:
        rows = [(f"{gate} T={at:g}", at) for at in temperatures]
    methods = [explanations.pullbacks(name, session, at, tick) for name, at in rows]
    methods += [
        explanations.pullbacks(name or other.manifest.recipe.gate, other, None, tick) for name, other in baselines
    ]
    hard = next((method for method in methods if method.facts["gate"] == method.facts["pool"] == "hard"), None)
    if samples and hard is not None:
        methods.append(explanations.smoothgrad("smoothgrad", hard, samples, LEVEL, seed))
    methods.append(explanations.random("random", seed))
    names = [method.name for method in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SurgeonError(f"two rows would be called {twice!r}", "Name one of them: --against NAME=BUNDLE")
    return methods


def _require_classes(session: Session) -> None:
    """Raise SurgeonError unless the bundle takes photos alone and gives classes, two at least."""
    image_of(session)
    if session.has_classes and session.classes < 2:
        raise SurgeonError(f"{session.bundle.path} has one class, and sensitivity to the class compares two")
    if not session.has_classes:
        raise SurgeonError(
            f"the output of {session.bundle.path} is no row of classes, which is what is evaluated",
            "Export one without --at, of a network that classifies",
        )
    if session.extra_inputs:
        raise SurgeonError(
            f"{session.bundle.path} takes {session.extra_inputs[0].name} beside the photo", "See `surgeon run`"
        )


def _require_same_weights(session: Session, other: Session, image: numpy.ndarray) -> None:
    """Raise SurgeonError where the networks answer differently: manifests name weights, and names may be shared."""
    import numpy

    nothing = numpy.zeros((1, session.classes), numpy.float32)
    ours, theirs = (one.pullback(image[None], nothing).output for one in (session, other))
    if ours.shape != theirs.shape or not numpy.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * numpy.abs(ours).max()):
        raise SurgeonError(
            f"{other.bundle.path} and {session.bundle.path} answer differently: their weights are not the same",
            "Export both from the same model",
        )


def _class(session: Session, image: numpy.ndarray, target: Target | None) -> int:
    return target if isinstance(target, int) else predicted(session, image)
