"""How a photo becomes the input of a network: its size, its normalisation, and where its channels are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Image
from surgeon.errors import SurgeonError
from surgeon.network.wrapping import Wrapper

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std per channel, of pixels in [0, 1]."""

PREPROCESSING: dict[str, Normalisation | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": None,
}


class Pixels(Wrapper):
    """Pixels in [-1, 1], [N, C, …] -> [0, 1] -> normalised by `mean` and `std` per channel -> the network.

    Without `mean` the network takes the pixels unchanged. `axes` is the number of axes after the channels: two for a
    picture, three for a film. With `channels_last` the network takes [N, …, C].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        axes: int = 2,
        channels_last: bool = False,
    ) -> None:
        super().__init__(network)
        self._normalises, self._channels_last = mean is not None, channels_last
        for name, values in (("mean", mean or ()), ("std", std or ())):
            self.register_buffer(name, torch.tensor(values).reshape(-1, *[1] * axes), persistent=False)

    def forward(self, pixels: Tensor, *extra_inputs: Tensor) -> Any:
        x = ((pixels + 1) / 2 - self.mean) / self.std if self._normalises else pixels
        return self.wrapped(x.movedim(1, -1) if self._channels_last else x, *extra_inputs)


def picture(shape: tuple[int, ...], value_range: tuple[float, float]) -> Image | None:
    """How a photo becomes an input of `shape`; None unless that is (1 or 3, H, W)."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    low, high = value_range
    return resized(Image(channels=shape[0], range=(float(low), float(high))), shape)


def channels_first(shape: tuple[int, ...]) -> tuple[Image | None, tuple[int, ...]]:
    """How a photo becomes an input of `shape` (H, W, C), and the shape (C, H, W); (None, `shape`) for no picture."""
    first = (*shape[-1:], *shape[:-1])
    image = picture(first, (-1.0, 1.0))
    return (None, shape) if image is None else (replace(image, channels_last=True), first)


def resized(image: Image | None, shape: tuple[int, ...]) -> Image | None:
    """`image` for another input shape; the crop keeps its share of the photo. None where it is no picture."""
    if image is None or len(shape) != 3:
        return None
    channels, height, width = shape
    resize = round(image.resize * max(height, width) / max(image.height, image.width))
    return replace(image, channels=channels, height=height, width=width, resize=resize)


def normalised(image: Image | None, normalisation: Normalisation | None, shape: tuple[int, ...]) -> Image | None:
    """`image` with that mean and std; raises SurgeonError where an input of `shape` is no picture."""
    if normalisation is None:
        return None if image is None else replace(image, mean=None, std=None)
    if image is None:
        raise SurgeonError(f"an input of shape {shape} is not a picture to normalise", "Give --preprocess none")
    mean, std = _for_channels(normalisation, image.channels)
    return replace(image, mean=mean, std=std, range=(-1.0, 1.0))


def _for_channels(normalisation: Normalisation, channels: int) -> Normalisation:
    mean, std = normalisation
    if len(mean) != channels and len(set(mean)) > 1:
        raise SurgeonError(
            f"imagenet preprocessing is for 3 channels, not {channels}", "Give --preprocess half or none"
        )
    return (mean, std) if len(mean) == channels else (mean[:1] * channels, std[:1] * channels)


def _attribute(name: str, *owners: Any) -> Any:
    return next((getattr(owner, name) for owner in owners if getattr(owner, name, None) is not None), None)


def preprocessing_name(image: Image | None) -> str | None:
    """The name of the normalisation of `image`; None for a named model's own, and where it is no picture."""
    if image is None:
        return None
    if image.mean is None:
        return "none"
    for name, normalisation in PREPROCESSING.items():
        if normalisation is not None and (image.mean, image.std) == _for_channels(normalisation, image.channels):
            return name
    return None
