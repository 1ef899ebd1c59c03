"""Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.importer.registry import Context, Numbers, operator

NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
SMOOTH = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


@operator("Upsample")
def upsample(x: Tensor, scales: Numbers, *, mode: str = "nearest") -> Tensor:
    return _resize(x, scales.tolist(), None, list(range(x.dim())), mode, "asymmetric", "floor")


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
    refused = {
        "antialias": antialias,
        "exclude_outside": exclude_outside,
        "keep_aspect_ratio_policy": keep_aspect_ratio_policy != "stretch",
        "cubic_coeff_a": mode == "cubic" and abs(cubic_coeff_a + 0.75) > 1e-6,
    }
    for name, asked in refused.items():
        if asked:
            raise ConversionError(f"{name} as set here", "PyTorch's interpolation has none")
    places = axes if axes is not None else list(range(x.dim()))
    if context.opset < 11:
        assert second is not None
        return _resize(x, second.tolist(), None, places, mode, "asymmetric", "floor")
    scales = third.tolist() if third is not None and third.size else None
    sizes = fourth.tolist() if fourth is not None and fourth.size else None
    return _resize(x, scales, sizes, places, mode, coordinate_transformation_mode, nearest_mode)


def _resize(
    x: Tensor,
    scales: list[float] | None,
    sizes: list[int] | None,
    axes: list[int],
    mode: str,
    coordinates: str,
    nearest: str,
) -> Tensor:
    """Resize the axes that change; batch and channels never do, whatever the file says of their size."""
    wanted: dict[int, int] = {}
    factors: dict[int, float] = {}
    for i, axis in enumerate(axes):
        axis %= x.dim()
        if sizes is not None and axis == 0:
            continue
        if sizes is not None:
            wanted[axis], factors[axis] = sizes[i], sizes[i] / x.shape[axis]
        elif scales is not None and scales[i] != 1:
            wanted[axis], factors[axis] = math.floor(x.shape[axis] * scales[i]), scales[i]
    changed = [axis for axis in sorted(wanted) if wanted[axis] != x.shape[axis]]
    if not changed:
        return x
    if mode == "nearest":
        return _nearest(x, {axis: (wanted[axis], factors[axis]) for axis in changed}, coordinates, nearest)
    spatial = x.dim() - 2
    if changed[0] < 2 or (mode, spatial) not in SMOOTH:
        raise ConversionError(f"{mode} resizing of axes {changed} of {x.dim()}", "PyTorch has none")
    size = [wanted.get(axis, x.shape[axis]) for axis in range(2, x.dim())]
    if any(abs(factors[axis] * x.shape[axis] - wanted[axis]) > 1e-3 for axis in changed):
        raise ConversionError(f"scales {scales} for sizes {list(x.shape[2:])}", "Use scales that give whole sizes")
    half = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and min(size) > 1)
    if not half and coordinates != "align_corners":
        raise ConversionError(
            f"{mode} resizing in {coordinates} coordinates", "PyTorch has half_pixel and align_corners"
        )
    return F.interpolate(x, size, mode=SMOOTH[mode, spatial], align_corners=not half)


def _nearest(x: Tensor, changed: dict[int, tuple[int, float]], coordinates: str, nearest: str) -> Tensor:
    """By torch's interpolation where it takes the same neighbours, else by picking them."""
    taken = {
        axis: _neighbours(x.shape[axis], wanted, factor, coordinates, nearest)
        for axis, (wanted, factor) in changed.items()
    }
    plain = all(
        neighbours == [place * x.shape[axis] // len(neighbours) for place in range(len(neighbours))]
        for axis, neighbours in taken.items()
    )
    if plain and min(taken) >= 2 and x.dim() <= 5:
        size = [len(taken[axis]) if axis in taken else x.shape[axis] for axis in range(2, x.dim())]
        return F.interpolate(x, size, mode="nearest")
    for axis, neighbours in taken.items():
        x = x.index_select(axis, torch.tensor(neighbours))
    return x


def _neighbours(length: int, wanted: int, factor: float, coordinates: str, nearest: str) -> list[int]:
    """The index that each place of the resized axis takes its value from."""
    transformations: dict[str, Callable[[int], float]] = {
        "asymmetric": lambda place: place / factor,
        "half_pixel": lambda place: (place + 0.5) / factor - 0.5,
        "pytorch_half_pixel": lambda place: (place + 0.5) / factor - 0.5 if wanted > 1 else 0.0,
        "align_corners": lambda place: place * (length - 1) / (wanted - 1) if wanted > 1 else 0.0,
        "tf_half_pixel_for_nn": lambda place: (place + 0.5) / factor,
    }
    if coordinates not in transformations:
        raise ConversionError(f"resizing in {coordinates} coordinates", f"Use {', '.join(transformations)}")
    original = [transformations[coordinates](place) for place in range(wanted)]
    return [min(max(NEAREST[nearest](round(place, 6)), 0), length - 1) for place in original]
