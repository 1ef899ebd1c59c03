"""Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.registry import Context, Numbers, operator, required
from surgeon.network.sizes import is_same, is_symbolic

NEAREST: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda place: -((0.5 - place) // 1),
    "round_prefer_ceil": lambda place: (place + 0.5) // 1,
    "floor": lambda place: place // 1,
    "ceil": lambda place: -(-place // 1),
}
"""For NumPy arrays and tensors."""

SMOOTH = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized: position `place` of the result is read at `original(place)` of the input.

    Lengths, and the factor between them, are symbols where the network is recorded for any height and width.
    """

    length: Any
    wanted: Any
    factor: Any
    coordinates: str
    sized: bool  # the factor is computed from the lengths

    def original(self, place: Any) -> Any:
        """Where `place`, a number, an array or a tensor, lies in the input."""
        scaled = (place + 0.5) / self.factor
        match self.coordinates:
            case "half_pixel":
                return scaled - 0.5
            case "pytorch_half_pixel":
                return scaled - 0.5 if self.wanted > 1 else 0.0 * place
            case "half_pixel_symmetric":
                exact = self.length * self.factor
                return self.length / 2 * (1 - self.wanted / exact) + scaled - 0.5
            case "asymmetric":
                return place / self.factor
            case "align_corners":
                return place * (self.length - 1) / (self.wanted - 1) if self.wanted > 1 else 0.0 * place
            case "tf_half_pixel_for_nn":
                return scaled
        raise ConversionError(f"resizing in {self.coordinates} coordinates", "Use half_pixel or asymmetric ones")

    @property
    def whole(self) -> bool:
        """Whether the factor times the length is exactly the wanted length."""
        if self.sized or float(self.factor).is_integer():
            return True
        return not is_symbolic(self.length) and abs(self.factor * self.length - self.wanted) < 1e-3

    def nearest(self, rounding: str) -> Tensor:
        """The input index of each position."""
        if is_symbolic(self.length, self.wanted):
            return self._rounded(torch.arange(self.wanted, dtype=torch.float64), rounding).long()
        return torch.tensor(self._known(rounding))

    def _known(self, rounding: str) -> list[int]:
        return [int(place) for place in self._rounded(np.arange(self.wanted, dtype=np.float64), rounding)]

    def _rounded(self, places: Any, rounding: str) -> Any:
        return self._near(places, rounding).clip(0, self.length - 1)

    def _near(self, places: Any, rounding: str) -> Any:
        """The index before it is clamped to the edges; positions are rounded to 1e-4 first, as float32 would."""
        return NEAREST[rounding]((self.original(places) * 1e4 + 0.5) // 1 / 1e4)

    def is_torchs(self, rounding: str) -> bool:
        """Whether the nearest is PyTorch's, at floor(place * length / wanted)."""
        if not is_symbolic(self.length, self.wanted):
            return self._known(rounding) == [place * self.length // self.wanted for place in range(self.wanted)]
        if self.sized:
            return self.coordinates == "asymmetric" and rounding == "floor"
        if not float(self.factor).is_integer() or self.coordinates == "align_corners":
            return False
        # In other coordinates, every `factor` places in a row are as the first ones, one element further.
        return not self._near(np.arange(self.factor), rounding).any()


@dataclass(frozen=True)
class Filter:
    """Weights of linear and cubic resizing, by distance."""

    cubic: bool
    a: float = -0.75
    exclude_outside: bool = False

    def at(self, distance: Tensor) -> Tensor:
        d = distance.abs()
        if not self.cubic:
            return (1 - d).clamp(min=0)
        near = (self.a + 2) * d**3 - (self.a + 3) * d**2 + 1
        far = self.a * (d**3 - 5 * d**2 + 8 * d - 4)
        return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))

    def matrix(self, axis: Axis) -> Tensor:
        """Weights [wanted, length]; elements beyond an edge repeat the edge, or are left out."""
        original = axis.original(torch.arange(axis.wanted, dtype=torch.float64)).unsqueeze(1)
        weights = torch.zeros(1, dtype=torch.float64)
        for tap in range(-1, 3):
            index = original.floor() + tap
            inside = index.clamp(0, axis.length - 1)
            counted = (index == inside) | (not self.exclude_outside)
            weights = weights + self.at(index - original) * counted * (inside == torch.arange(axis.length))
        return weights / weights.sum(1, keepdim=True)


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
    """Inputs are (x, scales) in opset 10, and (x, region, scales, sizes) since opset 11."""
    if antialias:
        raise ConversionError("antialias", "Resize without it")
    places = [axis % x.dim() for axis in (axes if axes is not None else range(x.dim()))]
    if context.opset < 11:
        return _resize(x, _scaled(places, required(second, None)), mode, "asymmetric", "floor")
    sizes = fourth.tolist() if fourth is not None and fourth.size else None
    if sizes is None:
        wanted = _scaled(places, required(third, None))
    else:
        wanted = {axis: (size, None) for axis, size in zip(places, sizes, strict=True) if axis}
        if keep_aspect_ratio_policy != "stretch":
            ratios = [size / x.shape[axis] for axis, (size, _) in wanted.items()]
            ratio = (min if keep_aspect_ratio_policy == "not_larger" else max)(ratios)
            wanted = {axis: (math.floor(x.shape[axis] * ratio + 0.5), ratio) for axis in wanted}
    smooth = Filter(mode == "cubic", cubic_coeff_a, bool(exclude_outside))
    return _resize(x, wanted, mode, coordinate_transformation_mode, nearest_mode, smooth)


def _scaled(axes: list[int], scales: list[float]) -> dict[int, tuple[Any, Any]]:
    return {axis: (None, scale) for axis, scale in zip(axes, scales, strict=True)}


def _resize(
    x: Tensor,
    wanted: Mapping[int, tuple[Any, Any]],
    mode: str,
    coordinates: str,
    rounding: str,
    smooth: Filter | None = None,
) -> Tensor:
    """Resize the axes that change to a size (None: from the factor) by a factor (None: from the sizes).

    The batch never changes, whatever the file says of its size.
    """
    axes = {}
    for axis, (size, factor) in wanted.items():
        length = x.shape[axis]
        if factor == 1 or (factor is None and is_same(size, length)):
            continue
        made = _scaled_length(length, factor) if size is None else size
        axes[axis] = Axis(length, made, made / length if factor is None else factor, coordinates, factor is None)
    if not axes:
        return x
    if mode == "nearest":
        return _nearest(x, axes, rounding)
    smooth = smooth or Filter(mode == "cubic")
    kind = SMOOTH.get((mode, x.dim() - 2))
    if kind and _as_torch_does(axes, smooth):
        sizes = [axes[axis].wanted if axis in axes else x.shape[axis] for axis in range(2, x.dim())]
        return F.interpolate(x, sizes, mode=kind, align_corners=coordinates == "align_corners")
    for axis, one in axes.items():
        x = (x.movedim(axis, -1) @ smooth.matrix(one).to(x.dtype).t()).movedim(-1, axis)
    return x


def _scaled_length(length: Any, factor: Any) -> Any:
    """floor(length * factor), in integers where the factor is a ratio of them, otherwise rounded as float32.

    ONNX Runtime computes in float32, where 0.7 times 10 is 7, though its 0.7 is less.
    """
    ratio = Fraction(factor).limit_denominator(1000)
    if abs(ratio - factor) < 1e-7 * factor:
        return length * ratio.numerator // ratio.denominator
    return math.floor(length * (factor * (1 + 2**-24)))


def _as_torch_does(axes: Mapping[int, Axis], smooth: Filter) -> bool:
    """Whether PyTorch's interpolation computes the same."""
    half = all(
        one.coordinates == "half_pixel" or (one.coordinates == "pytorch_half_pixel" and one.wanted > 1)
        for one in axes.values()
    )
    aligned = all(one.coordinates == "align_corners" for one in axes.values())
    whole = all(one.whole for one in axes.values())
    plain = smooth == Filter(smooth.cubic, smooth.a) and (not smooth.cubic or abs(smooth.a + 0.75) < 1e-6)
    return plain and min(axes) >= 2 and (aligned or (half and whole))


def _nearest(x: Tensor, axes: Mapping[int, Axis], rounding: str) -> Tensor:
    """By torch's interpolation if it takes the same neighbours, else by indexing."""
    if min(axes) >= 2 and 3 <= x.dim() <= 5 and all(one.is_torchs(rounding) for one in axes.values()):
        size = [axes[axis].wanted if axis in axes else x.shape[axis] for axis in range(2, x.dim())]
        return F.interpolate(x, size, mode="nearest")
    for axis, one in axes.items():
        x = x.index_select(axis, one.nearest(rounding))
    return x
