"""The classes or units of a bundle's output: their names, and the cotangents that weigh them. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy

from surgeon.bundle import units
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Layer, Manifest
from surgeon.bundle.scalars import shape_text
from surgeon.bundle.units import Array, Unit
from surgeon.errors import SurgeonError


class OutputUnits:
    """A bundle's output: a row of classes, or the units of the layers that the bundle was cut at."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    # --- shapes

    @property
    def classes(self) -> int:
        """K, the number of classes; raises SurgeonError unless the output is [N, K] of the whole network."""
        if not self.has_classes:
            layers, named = self._places, "a class with --target, " if self.manifest.labels else ""
            raise SurgeonError(
                f"the output of {self.bundle.path} is no row of classes: {units.described(layers)}",
                f"Name {named}a unit with --unit {units.form(layers)} (from Python at_units), or give the cotangent",
            )
        return self.output_shape[0]

    @property
    def has_classes(self) -> bool:
        """Whether the output is a row of classes, and not the units of layers."""
        whole = [layer.kind for layer in self.layers] in ([], ["entry"])  # all that the network returns, or one entry
        shape = self._output_sizes
        return whole and len(shape) == 1 and isinstance(shape[0], int)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that take the cotangent, each with its slice of the output; none: the network's own output."""
        return self.manifest.layers

    @property
    def _places(self) -> tuple[Layer, ...]:
        """The layers; the network's own output counts as a layer without a name."""
        return self.layers or (Layer("", "output", self._output_sizes),)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output; raises SurgeonError where it varies with the input's."""
        shape = self._output_sizes
        fixed = tuple(size for size in shape if isinstance(size, int))
        if len(fixed) != len(shape):
            raise SurgeonError(
                f"the output of {self.bundle.path} has no fixed shape ({shape_text(shape)} for one sample)",
                "Give the cotangent itself, from Python",
            )
        return fixed

    @property
    def _output_sizes(self) -> tuple[int | str, ...]:
        """As `output_shape`, with a formula for each size that varies."""
        ports = [port for artifact in self.manifest.artifacts.values() for port in artifact.outputs]
        return next((port.shape[1:] for port in ports if port.name == "output"), ())

    def output_shape_at(self, input: Array) -> tuple[int, ...]:
        """Shape of one sample's output for `input` [N, C, H, W], from the manifest's formulas of H and W.

        Raises SurgeonError where a formula is not made of sums, products and quotients.
        """
        sizes = [units.size_at(formula, input.shape) for formula in self._output_sizes]
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else self.output_shape

    # --- classes

    def one_hot(self, targets: int | Sequence[int]) -> Array:
        """The cotangent f32 [N, K] with a 1 at each target class; raises SurgeonError for one that does not exist."""
        indices = [targets] if isinstance(targets, int) else list(targets)
        for index in indices:
            self._check_class(index)
        cotangent = numpy.zeros((len(indices), self.classes), numpy.float32)
        cotangent[numpy.arange(len(indices)), indices] = 1
        return cotangent

    def target(self, text: str) -> int:
        """Index of the class that `text` names: its index, its label, one of a label's names, or a part of one label.

        Where the output has a map for each class, it is the channel. Raises SurgeonError for a name that no label has
        (with the nearest) or several have, an index out of range, or a bundle without labels.
        """
        wanted = text.strip()
        if wanted.removeprefix("-").isdecimal():
            return self._check_class(int(wanted))
        labels = self.manifest.labels
        if not labels:
            raise SurgeonError(f"the bundle {self.bundle.path} has no class names", "Give the class by its index")
        return units.find_label(wanted, labels)

    def label(self, index: int | Unit) -> str:
        """The class's label, or its index as text where the bundle has no labels; a unit's channel and position."""
        labels = self.manifest.labels
        if isinstance(index, tuple):
            layer, (channel, *place) = self.place(index)
            name = labels[channel] if labels and channel < len(labels) else f"channel {channel}"
            where = f" at {','.join(map(str, place))}" if place else ""
            return f"{layer if len(self.layers) > 1 else ''} {name}{where}".strip()
        return labels[index] if labels and index < len(labels) else str(index)

    def _check_class(self, index: int) -> int:
        channels = self._output_sizes[0]
        classes = channels if self.manifest.labels and isinstance(channels, int) else self.classes
        if not 0 <= index < classes:
            raise SurgeonError(f"there is no class {index}", f"The classes are 0 to {classes - 1}")
        return index

    # --- units of layers

    def at_units(self, wanted: Unit | Sequence[Unit], shape: tuple[int, ...] | None = None) -> Array:
        """The cotangent, of the output's shape, with a 1 at each sample's unit of the layers that the bundle is cut at.

        A unit is (channel,), which means its sum over all positions, or (channel, position, …), such as (5, 3, 4) for
        channel 5 at y 3, x 4; where there are several layers, the layer's name comes first. Where the size is free,
        `shape` is that of one sample's output (`output_shape_at`). Raises SurgeonError for a unit that does not exist,
        or where the output is classes.
        """
        self._refuse_classes()
        layers, shape = self._places, shape or self.output_shape
        if len(layers) == 1:  # several have no free size
            layers = (dataclasses.replace(layers[0], shape=shape),)
        return units.at([wanted] if isinstance(wanted, tuple) else list(wanted), layers)

    def unit(self, text: str) -> Unit:
        """The unit that `text` names: CHANNEL, or CHANNEL,Y,X, after LAYER: where there are several layers.

        Raises SurgeonError as `at_units` does.
        """
        self._refuse_classes()
        return units.parse(text, self._places)

    def place(self, unit: Unit) -> tuple[str, tuple[int, ...]]:
        """The layer of `unit` ("" for the network's own output), and its channel and position there."""
        layer, place = units.check(unit, self._places)
        return layer.name, place

    def split(self, output: Array) -> dict[str, Array]:
        """The outputs [N, …] of each layer, by name, taken from an `output` of the artifacts."""
        return units.split(output, self._places)

    def join(self, cotangents: Mapping[str, Array]) -> Array:
        """The artifacts' cotangent, made of `cotangents` [N, …] at the layers; layers that are left out get zeros.

        Raises SurgeonError for a layer that is not there, a wrong shape, or batches that differ.
        """
        return units.join(cotangents, self._places)

    def _refuse_classes(self) -> None:
        if self.has_classes:
            raise SurgeonError(
                f"the output of {self.bundle.path} is classes, not the units of a layer",
                "Name a class with --target (from Python one_hot), or export a bundle with --at LAYER",
            )


def softmax(output: Array, axis: int = -1) -> Array:
    """Probabilities over the classes along `axis`, of the same shape."""
    exponentials = numpy.exp(output - output.max(axis=axis, keepdims=True))
    return numpy.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def top(output: Array, count: int = 5) -> list[tuple[int, float]]:
    """The most probable classes of one `output` [K]: index and probability, best first."""
    probabilities = softmax(output.astype(numpy.float64))
    best = numpy.argsort(-probabilities, kind="stable")[:count]
    return [(int(index), float(probabilities[index])) for index in best]
