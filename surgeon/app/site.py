"""The site on disk: the page, its runtime, and each bundle's part for browsers. Written beside, then renamed.

index.html and its modules   as they are in surgeon/app/page
runtime/                     onnxruntime-web, and its licence
surgeon-site.json            the title, and the models by name
models/NAME/                 ascent_step.onnx, its weights, model.json (`facts`), photos/NAME.png at the model's size
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx

from surgeon.app import vendored
from surgeon.app.policy import CONTENT_SECURITY_POLICY
from surgeon.bundle.atomic import staged
from surgeon.bundle.manifest import Image, strict
from surgeon.errors import SurgeonError
from surgeon.runtime.graphs import stored_outside
from surgeon.runtime.photos import load_photo
from surgeon.runtime.pictures import to_picture
from surgeon.runtime.session import Session, load

MARK = "surgeon-site.json"
"""The file that marks a site, by a name that no other tool uses: a folder with it may be replaced."""

STEP = "ascent_step.onnx"
LIMITS = {"steps": (1, 1000), "step_size": (1, None), "radius": (10, None), "temperature": (0.01, None)}
"""The ranges of the page's dials; a default beyond them widens them."""


def write_site(
    destination: Path,
    bundles: Sequence[Path],
    photos: Sequence[Path] = (),
    title: str = "surgeon",
    runtime: Path | None = None,
    tick: vendored.Tick = lambda done, total: None,
) -> None:
    """Write the site of `bundles` into `destination`, with `photos` as examples.

    Raises SurgeonError, and leaves the folder as it was, where the page cannot run a bundle, a photo cannot be read, or
    the runtime cannot be fetched.
    """
    sessions = [load(bundle) for bundle in bundles]
    for session in sessions:
        require_fit(session)
    names = unique([session.bundle.path.resolve().name for session in sessions])
    examples = unique([photo.stem for photo in photos])
    inputs = [[load_photo(photo, _image(session)) for photo in photos] for session in sessions]
    with staged(destination, "site", MARK) as folder:
        (folder / "runtime").mkdir()
        for name, data in vendored.runtime(runtime, tick):
            (folder / "runtime" / name).write_bytes(data)
        _write_page(folder, title)
        for session, name, images in zip(sessions, names, inputs, strict=True):
            place = folder / "models" / name
            (place / "photos").mkdir(parents=True)
            _write_step(session, place)
            for example, pixels in zip(examples, images, strict=True):
                to_picture(pixels, _image(session)).save(place / "photos" / f"{example}.png")
            _write_json(place / "model.json", facts(session))
        listed = [
            {"name": name, "title": session.manifest.model.name} for name, session in zip(names, sessions, strict=True)
        ]
        shown = [{"name": name, "file": photo.name} for name, photo in zip(examples, photos, strict=True)]
        _write_json(folder / MARK, {"title": title, "models": listed, "photos": shown})


def require_fit(session: Session) -> None:
    """Raise SurgeonError unless the page can run the session's bundle."""
    manifest, path = session.manifest, session.bundle.path
    if STEP not in manifest.artifacts:
        raise SurgeonError(f"the bundle {path} has no {STEP}, which browsers run", "Export it with --formats onnx")
    if manifest.recipe.objective == "energy":
        raise SurgeonError(f"the objective of {path} is energy, which has no class to choose", "See `surgeon run`")
    if session.extra_inputs:
        names = ", ".join(port.name for port in session.extra_inputs)
        raise SurgeonError(
            f"the network of {path} takes {names} beside its picture", "Run it with `surgeon run --extra-input`"
        )
    if manifest.image is None or manifest.image.channels not in (1, 3):
        raise SurgeonError(f"the input of {path} is not a picture", "Run it from Python")
    if not manifest.defaults.step_size > 0:  # the page's dials are logarithmic
        size = manifest.defaults.step_size
        raise SurgeonError(f"the step size of {path} is {size:g}, and the page goes upwards", "See `surgeon run`")
    if not session.has_classes:
        raise SurgeonError(f"the output of {path} is no row of classes", "Export the whole network, without --at")
    session.bundle.file(STEP)


def facts(session: Session) -> dict[str, Any]:
    """The bundle's facts for the page: a part of its manifest, and the names of its classes."""
    manifest = session.manifest
    recipe, image = manifest.recipe, _image(session)
    takes = {port.name: port for port in manifest.artifacts[STEP].inputs}
    own = manifest.default_temperature if "temperature" in takes else None
    per_gate = list(own) if isinstance(own, tuple) else None
    defaults = {**dataclasses.asdict(manifest.defaults), "temperature": 1.0 if per_gate else own}
    defaults["radius"] = defaults["radius"] if math.isfinite(defaults["radius"]) else None
    # As in `surgeon figure grid`: no temperature makes gates hard whose T is fixed, or that are of another kind.
    hardens = own is not None and recipe.gate == "soft" and not (recipe.temperatures and not per_gate)
    return {
        "model": dataclasses.asdict(manifest.model),
        "recipe": dataclasses.asdict(recipe),
        "image": dataclasses.asdict(image),
        "labels": [session.label(index) for index in range(session.classes)],
        "defaults": defaults,
        "limits": {name: _limits(name, defaults[name]) for name in LIMITS},
        "temperatures": per_gate,  # of each gate; the page's T is a factor then
        "hardens": hardens,
        "weights": _weights(session),
        "bytes": sum(manifest.files[file].bytes for file in [STEP, *_weights(session)]),
        "versions": manifest.versions,
    }


def unique(names: Sequence[str]) -> list[str]:
    """Each name in letters that need no escape in an address, numbered where two would be equal."""
    chosen: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "unnamed"
        taken = {other.casefold() for other in chosen}
        numbered = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(names) + 2))
        chosen.append(next(candidate for candidate in numbered if candidate.casefold() not in taken))
    return chosen


def _image(session: Session) -> Image:
    assert session.manifest.image is not None  # require_fit
    return session.manifest.image


def _limits(name: str, default: float | None) -> tuple[float, float | None]:
    low, high = LIMITS[name]
    if default is None:
        return low, high
    return min(low, default), max(high, default) if high is not None else None


def _weights(session: Session) -> list[str]:
    """The files that hold the step's weights."""
    model = onnx.load(session.bundle.path / STEP, load_external_data=False)
    entries = [entry for _, tensor in stored_outside(model) for entry in tensor.external_data]
    return sorted({entry.value for entry in entries if entry.key == "location"} & set(session.manifest.files))


def _write_step(session: Session, place: Path) -> None:
    """The step and its weights, in `place`.

    Its inputs lose their defaults: onnxruntime-web accepts no value for an input with a default.
    """
    model = onnx.load(session.bundle.path / STEP, load_external_data=False)
    names = {port.name for port in model.graph.input}
    own = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(own)
    onnx.save(model, place / STEP)
    for file in _weights(session):
        shutil.copyfile(session.bundle.path / file, place / file)


def _write_page(folder: Path, title: str) -> None:
    """The page's files, with title and policy filled into index.html."""
    for entry in files("surgeon.app").joinpath("page").iterdir():
        if entry.name == "index.html":
            text = entry.read_text(encoding="utf-8")
            filled = text.replace("{{POLICY}}", CONTENT_SECURITY_POLICY).replace("{{TITLE}}", html.escape(title))
            (folder / entry.name).write_text(filled, encoding="utf-8")
        elif entry.is_file():
            (folder / entry.name).write_bytes(entry.read_bytes())
    licence = files("surgeon.app").joinpath("onnxruntime-web.LICENSE").read_bytes()
    (folder / "runtime" / "LICENSE").write_bytes(licence)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(strict(data), allow_nan=False), encoding="utf-8")
