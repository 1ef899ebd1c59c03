"""Which class or unit an ascent climbs, and its cotangent. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    import numpy

    from surgeon.runtime.session import Session


Target = int | tuple[int | str, ...]
"""A class, or a unit of a layer."""


def predicted(session: Session, image: numpy.ndarray, extra_inputs: dict[str, numpy.ndarray] | None = None) -> int:
    """The class that the network sees in `image` [C, H, W]."""
    import numpy

    nothing = numpy.zeros((1, session.classes), numpy.float32)
    return int(session.pullback(image[None], nothing, extra_inputs=extra_inputs).output[0].argmax())


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


def takes_temperature(session: Session) -> bool:
    """Whether any artifact has the input: where every gate is hard, none has."""
    artifacts = session.manifest.artifacts.values()
    return any(port.name == "temperature" for artifact in artifacts for port in artifact.inputs)
