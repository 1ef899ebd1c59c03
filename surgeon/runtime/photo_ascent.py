"""Ascents from photos: the facts and the four pictures of each. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from surgeon.bundle.units import Array
from surgeon.runtime import pictures
from surgeon.runtime.output_units import top
from surgeon.runtime.photos import image_of
from surgeon.runtime.session import AscentState, Session
from surgeon.runtime.targets import Target, cotangents, predicted_by_step, takes_temperature

KINDS = ("clean", "perturbed", "difference", "pullback")
"""The pictures of one ascent."""


def with_defaults(session: Session, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of `Session.steps`, with the bundle's default for each one that is None.

    The temperature stays None where the bundle takes none, or one for each gate.
    """
    defaults = session.manifest.defaults
    filled = {name: getattr(defaults, name) if value is None else value for name, value in settings.items()}
    per_gate = session.manifest.recipe.temperature_input == "per-gate"
    if settings["temperature"] is None and (per_gate or not takes_temperature(session)):
        filled["temperature"] = None
    return filled


def ascend(
    session: Session,
    image: Array,
    target: Target | None,
    settings: Mapping[str, Any],
    tick: Callable[[], None],
    extra_inputs: Mapping[str, Array] | None = None,
) -> dict[str, Any]:
    """One ascent from `image` [C, H, W]: target or unit, top classes, score of each step, and the pictures.

    `target` None is the network's most probable class. `settings` are those of `Session.steps`; `extra_inputs` the
    network's other inputs, by name, for a batch of one.
    """
    cotangent = None
    if session.manifest.recipe.objective != "energy":
        if target is None:
            target = predicted_by_step(session, image, **settings, extra_inputs=extra_inputs)
        cotangent = cotangents(session, [target], image)
    states = session.steps(image[None], cotangent, **settings, extra_inputs=extra_inputs)
    first = last = next(states)
    scores = [float(first.score[0])]
    tick()
    for last in states:
        scores.append(float(last.score[0]))
        tick()
    layout = image_of(session)
    return {
        "target": {"index": target, "label": session.label(target)} if isinstance(target, int) else None,
        **({"unit": _unit(session, target)} if isinstance(target, tuple) else {}),
        "before": _top(session, first),
        "after": _top(session, last),
        "score": scores,
        "pictures": {
            "clean": pictures.to_picture(image, layout),
            "perturbed": pictures.to_picture(last.perturbed[0], layout),
            "difference": pictures.difference(image, last.perturbed[0]),
            "pullback": pictures.heat(first.pullback[0]),
        },
    }


def _unit(session: Session, unit: tuple[int | str, ...]) -> dict[str, Any]:
    """The unit as facts, with its name where channels have names."""
    layer, place = session.place(unit)
    named = {"label": session.label(unit)} if session.manifest.labels else {}
    return {"layer": layer or None, "place": list(place), **named}


def _top(session: Session, state: AscentState) -> list[dict[str, Any]]:
    """The most probable classes; none where the output is no row of classes."""
    if not session.has_classes:
        return []
    return [
        {"index": index, "label": session.label(index), "probability": probability}
        for index, probability in top(state.output[0])
    ]


# --- files


def file_names(photos: Sequence[Path]) -> list[str]:
    """A name for each photo's pictures: its stem, numbered where two photos would share it."""
    taken: set[str] = set()
    names = []
    for photo in photos:
        name, number = photo.stem, 1
        while name.casefold() in taken:  # some file systems take Cat and cat for one name
            number += 1
            name = f"{photo.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def picture_paths(folder: Path, name: str) -> dict[str, Path]:
    """The path of each kind of picture."""
    return {kind: folder / f"{name}.{kind}.png" for kind in KINDS}


def write_pictures(folder: Path, name: str, drawn: Mapping[str, PIL.Image.Image]) -> dict[str, str]:
    """Write NAME.KIND.png for each picture, beside first and then renamed; return the paths by kind."""
    paths = picture_paths(folder, name)
    for kind, picture in drawn.items():
        pictures.save(picture, paths[kind])
    return {kind: str(path) for kind, path in paths.items()}
