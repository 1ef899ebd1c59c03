"""Checks that two bundles are of one network, so that their results may be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.runtime.session import Session


def require_same_network(session: Session, other: Session) -> None:
    """Raise SurgeonError unless `other` is of the same network and weights, by its manifest, and takes photos alike."""
    ours, theirs = session.manifest, other.manifest
    same = [
        ("model", ours.model.source, theirs.model.source),
        ("weights", ours.model.weights, theirs.model.weights),
        ("number of parameters", ours.model.parameters, theirs.model.parameters),
        ("objective", ours.recipe.objective, theirs.recipe.objective),
        ("way to take photos", ours.image, theirs.image),
        ("layer", ours.layers, theirs.layers),
    ]
    for what, mine, its in same:
        if mine != its:
            raise SurgeonError(
                f"{other.bundle.path} and {session.bundle.path} differ in their {what} ({its}, not {mine})",
                "Export both from the same model",
            )


def require_same_weights(session: Session, other: Session, image: Array) -> None:
    """Raise SurgeonError where the networks' outputs for `image` differ: two sets of weights may share a name."""
    ours = session.output(image[None])
    # By the other's pullback, which is run anyway: a forward pass would need a session that nothing else uses.
    theirs = other.pullback(image[None], numpy.zeros((1, other.classes), numpy.float32)).output
    if ours.shape != theirs.shape or not numpy.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * numpy.abs(ours).max()):
        raise SurgeonError(
            f"{other.bundle.path} and {session.bundle.path} answer differently: their weights are not the same",
            "Export both from the same model",
        )
