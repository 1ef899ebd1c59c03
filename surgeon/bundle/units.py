"""Units and classes: their names, the cotangents that weigh units, and the layers' slices of an output. Torch-free."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from surgeon.bundle.manifest import Layer
from surgeon.errors import SurgeonError

Array = numpy.ndarray[Any, numpy.dtype[Any]]

Unit = tuple[int | str, ...]
"""(channel,) for all positions of a channel, or a channel and a position for each axis. A bundle of several layers has
the layer's name in front: ("layer3", 17, 6, 6). An output that is one number for each sample has the unit (0,)."""


def parse(text: str, layers: Sequence[Layer]) -> Unit:
    """The unit that `text` names: [LAYER:]CHANNEL[,Y,X]; raises SurgeonError where there is none."""
    name, colon, places = text.strip().rpartition(":")
    parts = [part.strip() for part in places.split(",")]
    if not all(part.removeprefix("-").isdecimal() for part in parts):
        raise SurgeonError(f"{text!r} is no unit", f"Write {form(layers)}")
    layer, place = check((*([name] if colon else []), *map(int, parts)), layers)
    return (layer.name, *place) if len(layers) > 1 else place


def check(unit: Unit, layers: Sequence[Layer]) -> tuple[Layer, tuple[int, ...]]:
    """The layer of `unit`, and its channel and position there; raises SurgeonError for one that does not exist."""
    named = isinstance(unit[0], str) if unit else False
    if not named and len(layers) > 1:
        raise SurgeonError(f"the unit {_text(unit)} names no layer", f"There are {described(layers)}")
    found = [layer for layer in layers if not named or layer.name == unit[0]]
    if not found:
        raise SurgeonError(f"the bundle has no layer {unit[0]!r}", f"There are {described(layers)}")
    layer, place = found[0], tuple(part for part in unit if isinstance(part, int))
    shape = layer.shape or (1,)
    fits = all(at >= 0 and (isinstance(size, str) or at < size) for at, size in zip(place, shape, strict=False))
    if len(place) not in (1, len(shape)) or not fits:
        raise SurgeonError(f"there is no unit {_text(unit)}", f"There are {described([layer])}")
    return layer, place


def at(units: Sequence[Unit], layers: Sequence[Layer]) -> Array:
    """The cotangent f32 [N, …output…] with a 1 at each sample's unit; a channel has 1 at all its positions."""
    rows = []
    for unit in units:
        layer, place = check(unit, layers)
        own = numpy.zeros(_sizes(layer) or (1,), numpy.float32)
        own[place] = 1
        rows.append(join({layer.name: own.reshape(1, *_sizes(layer))}, layers))
    return numpy.concatenate(rows) if rows else numpy.zeros((0, *_output_sizes(layers)), numpy.float32)


def split(output: Array, layers: Sequence[Layer]) -> dict[str, Array]:
    """The output [N, …] of each layer, by name, cut out of the bundle's `output`."""
    if len(layers) == 1:
        return {layers[0].name: output}
    return {
        layer.name: output[:, layer.start : layer.start + layer.size].reshape(len(output), *_sizes(layer))
        for layer in layers
    }


def join(cotangents: Mapping[str, Array], layers: Sequence[Layer]) -> Array:
    """The cotangent of the bundle's output from the layers' cotangents, [N, …] each; a missing layer has zeros.

    Raises SurgeonError for no cotangent, an unknown layer, another shape, or batches that differ.
    """
    known = {layer.name: layer for layer in layers}
    for name, value in cotangents.items():
        if name not in known:
            raise SurgeonError(f"the bundle has no layer {name!r}", f"Its layers are {', '.join(known)}")
        if value.shape[1:] != _sizes(known[name]):
            wanted = ", ".join(map(str, ("N", *known[name].shape)))
            raise SurgeonError(f"the cotangent at {name} has shape {list(value.shape)}, not [{wanted}]")
    batches = {len(value) for value in cotangents.values()}
    if len(batches) != 1:
        raise SurgeonError(f"the cotangents have {len(batches)} batches", "Give one at least, all with as many rows")
    if len(layers) == 1:
        return next(iter(cotangents.values()))
    count = batches.pop()
    rows = [cotangents.get(layer.name, numpy.zeros((count, layer.size), numpy.float32)) for layer in layers]
    return numpy.concatenate([row.reshape(count, -1) for row in rows], axis=1)


def find_label(wanted: str, labels: Sequence[str]) -> int:
    """Index of the label that `wanted` names: as a whole, as one of its names, or as a part, in this order."""
    key = wanted.casefold()
    folded = [label.casefold() for label in labels]
    names = [[name.strip() for name in label.split(",")] for label in folded]
    readings = (
        [index for index, label in enumerate(folded) if label == key],
        [index for index, parts in enumerate(names) if key in parts],
        [index for index, label in enumerate(folded) if key and key in label],
    )
    found = next((indices for indices in readings if indices), [])
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{index} {labels[index]}" for index in found[:5]) + (", …" if len(found) > 5 else "")
        raise SurgeonError(f"{wanted!r} names {len(found)} classes: {several}", "Give a longer name, or the index")
    known = {name: f"{index} {labels[index]}" for index, parts in enumerate(names) for name in parts}
    near = list(dict.fromkeys(known[name] for name in difflib.get_close_matches(key, known, n=3, cutoff=0.5)))
    remedy = f"The nearest are: {', '.join(near)}" if near else "`surgeon inspect BUNDLE --show classes` lists them"
    raise SurgeonError(f"no class is named {wanted!r}", remedy)


def described(layers: Sequence[Layer]) -> str:
    """The range of units, as text."""
    return "; ".join(map(_described, layers))


def size_at(formula: int | str, shape: Sequence[int]) -> int | None:
    """The value of a size in the manifest, such as "(H - 1)//2 + 1", for an input [N, C, H, W]; None if unknown.

    For inputs with another number of axes, only N is known.
    """
    if isinstance(formula, int):
        return formula
    text = formula
    known = dict(zip("NCHW", shape, strict=True)) if len(shape) == 4 else {"N": shape[0]}
    if "**" in text or not re.fullmatch(r"[\dNHW+\-*/() ]+", text):
        return None
    try:
        return int(eval(text, {"__builtins__": {}}, known))
    except (SyntaxError, NameError, ArithmeticError):
        return None


def form(layers: Sequence[Layer]) -> str:
    """The notation of a unit."""
    return f"{'LAYER:' if len(layers) > 1 else ''}CHANNEL[,Y,X]"


def _described(layer: Layer) -> str:
    channels, *places = layer.shape or (1,)
    axes = ("y", "x") if len(places) == 2 else ("position",) * len(places)
    ends = [(axis, size - 1) for axis, size in zip(axes, places, strict=True) if isinstance(size, int)]
    where = ", ".join(f"{axis} 0 to {end}" for axis, end in ends)
    last = channels - 1 if isinstance(channels, int) else f"{channels} - 1"
    place = f" at {layer.name}" if layer.name else ""
    return f"channels 0 to {last}{f' with {where}' if where else ''}{place}"


def _sizes(layer: Layer) -> tuple[int, ...]:
    return tuple(size for size in layer.shape if isinstance(size, int))


def _output_sizes(layers: Sequence[Layer]) -> tuple[int, ...]:
    return _sizes(layers[0]) if len(layers) == 1 else (sum(layer.size for layer in layers),)


def _text(unit: Unit) -> str:
    named = [f"{part}:" for part in unit if isinstance(part, str)]
    return "".join(named) + ",".join(str(part) for part in unit if not isinstance(part, str))
