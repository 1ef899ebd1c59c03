"""Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.importer.registry import Context, Numbers, operator, required

NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
SMOOTH = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized: `place` of the result comes from `original(place)`, between the input's elements."""

    length: int
    wanted: int
    factor: float
    coordinates: str

    def original(self, place: int) -> float:
        scaled = (place + 0.5) / self.factor
        match self.coordinates:
            case "half_pixel":
                return scaled - 0.5
            case "pytorch_half_pixel":
                return scaled - 0.5 if self.wanted > 1 else 0.0
            case "half_pixel_symmetric":
                exact = self.length * self.factor
                return self.length / 2 * (1 - self.wanted / exact) + scaled - 0.5
            case "asymmetric":
                return place / self.factor
            case "align_corners":
                return place * (self.length - 1) / (self.wanted - 1) if self.wanted > 1 else 0.0
            case "tf_half_pixel_for_nn":
                return scaled
        raise ConversionError(f"resizing in {self.coordinates} coordinates", "Use half_pixel or asymmetric ones")

    def nearest(self, rounding: str) -> list[int]:
        """The index that each place takes its value from."""
        places = [NEAREST[rounding](round(self.original(place), 6)) for place in range(self.wanted)]
        return [min(max(place, 0), self.length - 1) for place in places]


@dataclass(frozen=True)
class Filter:
    """What linear and cubic resizing weigh elements with, by their distance."""

    cubic: bool
    a: float = -0.75
    exclude_outside: bool = False

    def at(self, distance: float) -> float:
        d = abs(distance)
        if not self.cubic:
            return max(1 - d, 0.0)
        if d <= 1:
            return (self.a + 2) * d**3 - (self.a + 3) * d**2 + 1
        return self.a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    def matrix(self, axis: Axis) -> Tensor:
        """Weights [wanted, length]: elements beyond an edge are the one at the edge, or do not count."""
        weights = np.zeros((axis.wanted, axis.length))
        for place in range(axis.wanted):
            original = axis.original(place)
            for index in range(math.floor(original) - 1, math.floor(original) + 3):
                inside = min(max(index, 0), axis.length - 1)
                if inside == index or not self.exclude_outside:
                    weights[place, inside] += self.at(index - original)
        return torch.from_numpy(weights / weights.sum(1, keepdims=True))


@operator("Upsample")
def upsample(x: Tensor, scales: Numbers, *, mode: str = "nearest") -> Tensor:
    scaled = {axis: (None, scale) for axis, scale in enumerate(scales.tolist())}
    return _resize(x, scaled, mode, "asymmetric", "floor")


@operator("Resize")
def resize(
    x: Tensor,
    second: Numbers | None = None,
    third: Numbers | None = None,
    fourth: Numbers | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    context: Context,
) -> Tensor:
    """Inputs are (x, scales) in opset 10, and (x, region, scales, sizes) since."""
    if antialias:
        raise ConversionError("antialias", "Resize without it")
    places = [axis % x.dim() for axis in (axes if axes is not None else range(x.dim()))]
    if context.opset < 11:
        return _resize(x, _scaled(places, required(second, None)), mode, "asymmetric", "floor")
    sizes = fourth.tolist() if fourth is not None and fourth.size else None
    if sizes is None:
        wanted = _scaled(places, required(third, None))
    else:
        ratios = {axis: size / x.shape[axis] for axis, size in zip(places, sizes, strict=True) if axis}
        if keep_aspect_ratio_policy != "stretch":
            ratio = (min if keep_aspect_ratio_policy == "not_larger" else max)(ratios.values())
            wanted = {axis: (math.floor(x.shape[axis] * ratio + 0.5), ratio) for axis in ratios}
        else:
            wanted = {axis: (size, ratios[axis]) for axis, size in zip(places, sizes, strict=True) if axis}
    smooth = Filter(mode == "cubic", cubic_coeff_a, bool(exclude_outside))
    return _resize(x, wanted, mode, coordinate_transformation_mode, nearest_mode, smooth)


def _scaled(axes: list[int], scales: list[float]) -> dict[int, tuple[int | None, float]]:
    return {axis: (None, scale) for axis, scale in zip(axes, scales, strict=True)}


def _resize(
    x: Tensor,
    wanted: Mapping[int, tuple[int | None, float]],
    mode: str,
    coordinates: str,
    rounding: str,
    smooth: Filter | None = None,
) -> Tensor:
    """Resize the axes that change to a size (None: what the factor makes of it) by a factor.

    The batch never changes, whatever the file says of its size.
    """
    axes = {}
    for axis, (size, factor) in wanted.items():
        if factor != 1:
            made = math.floor(x.shape[axis] * factor) if size is None else size
            axes[axis] = Axis(x.shape[axis], made, factor, coordinates)
    if not axes:
        return x
    if mode == "nearest":
        return _nearest(x, {axis: one.nearest(rounding) for axis, one in axes.items()})
    smooth = smooth or Filter(mode == "cubic")
    kind = SMOOTH.get((mode, x.dim() - 2))
    if kind and _as_torch_does(axes, smooth):
        sizes = [axes[axis].wanted if axis in axes else x.shape[axis] for axis in range(2, x.dim())]
        return F.interpolate(x, sizes, mode=kind, align_corners=coordinates == "align_corners")
    for axis, one in axes.items():
        x = (x.movedim(axis, -1) @ smooth.matrix(one).to(x.dtype).t()).movedim(-1, axis)
    return x


def _as_torch_does(axes: Mapping[int, Axis], smooth: Filter) -> bool:
    """Whether PyTorch's interpolation is the same."""
    half = all(
        one.coordinates == "half_pixel" or (one.coordinates == "pytorch_half_pixel" and one.wanted > 1)
        for one in axes.values()
    )
    aligned = all(one.coordinates == "align_corners" for one in axes.values())
    whole = all(abs(one.factor * one.length - one.wanted) < 1e-3 for one in axes.values())
    plain = smooth == Filter(smooth.cubic, smooth.a) and (not smooth.cubic or abs(smooth.a + 0.75) < 1e-6)
    return plain and min(axes) >= 2 and (aligned or (half and whole))


def _nearest(x: Tensor, taken: Mapping[int, list[int]]) -> Tensor:
    """By torch's interpolation where it takes the same neighbours, else by picking them."""
    plain = all(
        neighbours == [place * x.shape[axis] // len(neighbours) for place in range(len(neighbours))]
        for axis, neighbours in taken.items()
    )
    if plain and min(taken) >= 2 and 3 <= x.dim() <= 5:
        size = [len(taken[axis]) if axis in taken else x.shape[axis] for axis in range(2, x.dim())]
        return F.interpolate(x, size, mode="nearest")
    for axis, neighbours in taken.items():
        x = x.index_select(axis, torch.tensor(neighbours))
    return x
