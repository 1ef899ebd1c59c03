"""The methods that one evaluation compares: a row for each bundle and temperature, and the controls. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.analysis.evaluate import explanations
from surgeon.analysis.evaluate.explanations import Method, Tick
from surgeon.errors import SurgeonError
from surgeon.runtime.photos import image_of
from surgeon.runtime.session import Session
from surgeon.runtime.targets import takes_temperature

LEVEL = 0.15
"""SmoothGrad's noise, in ranges of a photo's pixels: the middle of its paper's recommendation."""


def choose(
    session: Session,
    baselines: Sequence[tuple[str, Session]],
    temperatures: Sequence[float],
    samples: int,
    seed: int,
    tick: Tick,
) -> list[Method]:
    """The pullbacks of `session` at each temperature, of each baseline, SmoothGrad of the first hard one, and noise.

    `samples` are SmoothGrad's (0: leave it out). Raises SurgeonError where two methods would have one name, and for
    temperatures of a bundle that takes none.
    """
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


def require_classes(session: Session) -> None:
    """Raise SurgeonError unless the bundle takes photos alone and gives classes, two at least."""
    image_of(session)
    path = session.bundle.path
    if session.has_classes and session.classes < 2:
        raise SurgeonError(f"{path} has one class, and sensitivity to the class compares two")
    if not session.has_classes:
        raise SurgeonError(
            f"the output of {path} is no row of classes, and evaluations compare classes",
            "Export one without --at, of a network that classifies",
        )
    if session.extra_inputs:
        raise SurgeonError(f"{path} takes {session.extra_inputs[0].name} beside the photo", "See `surgeon run`")
