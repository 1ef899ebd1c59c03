"""The class or unit that an ascent climbs, and its cotangent. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.runtime.session import Session

Target = int | tuple[int | str, ...]
"""A class, or a unit of a layer."""


def predicted(session: Session, image: Array, extra_inputs: Mapping[str, Array] | None = None) -> int:
    """The network's most probable class for `image` [C, H, W], by a forward pass."""
    session.one_hot([])  # raises where the output is no row of classes
    return int(session.output(image[None], extra_inputs)[0].argmax())


def predicted_by_step(session: Session, image: Array, **settings: Any) -> int:
    """The same by the ascent's own step, with a cotangent of zeros, for callers that ascend next.

    `settings` are those of `Session.steps`. It costs a pullback where `predicted` costs a forward pass, but opens no
    second session, which for one photo would take more time, and as much memory again.
    """
    zeros = numpy.zeros((1, session.classes), numpy.float32)
    return int(next(session.steps(image[None], zeros, **settings)).output[0].argmax())


def cotangents(session: Session, targets: Sequence[Target], image: Array) -> Array:
    """One row for each target, classes or units, at the output for `image` [C, H, W]."""
    units = [target for target in targets if isinstance(target, tuple)]
    if units:
        return session.at_units(units, session.output_shape_at(image[None]))
    return session.one_hot([target for target in targets if isinstance(target, int)])


def read_targets(session: Session, targets: Sequence[str], units: Sequence[str]) -> list[Target]:
    """The targets that --target or --unit names.

    Where the output is a map for each class, a target is that map, summed. Raises SurgeonError for classes of a bundle
    with units, units of a bundle with classes, and no unit at all where there are no classes to choose from.
    """
    if session.manifest.recipe.objective == "energy":
        if targets or units:
            raise SurgeonError(
                "the bundle's objective is energy, which has no target class or unit", "Leave --target and --unit out"
            )
        return []
    maps = not session.has_classes and session.manifest.labels
    if not session.has_classes and ((targets and not maps) or not (targets or units)):
        session.one_hot([])  # raises, with the units that there are
    classes = [session.target(text) for text in targets]
    return [*((index,) if maps else index for index in classes), *map(session.unit, units)]


def takes_temperature(session: Session) -> bool:
    """Whether any artifact has the input: where every gate is hard, none has."""
    return any(map(session.loaded.takes_temperature, session.manifest.artifacts))
