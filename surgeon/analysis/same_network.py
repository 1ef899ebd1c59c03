"""Whether two bundles are of one network, so that what they compute may be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
                f"{other.bundle.path} has another {what} than {session.bundle.path} ({its}, not {mine})",
                "Export both from the same model",
            )
