"""From what the user typed to a network in eval mode, with its preprocessing inside and its labels beside it.

A source is a name (`surgeon.network.published`), `package.module:factory`, a file (.onnx, .pt2), or, from Python, a
module. No part of this touches the internet, but for torchvision's own download of its own weights.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Image, Manifest, Model, Port
from surgeon.errors import SurgeonError
from surgeon.network.inputs import Shapes, arrange, samples, with_extra_inputs
from surgeon.network.modules import copied, require_capturable
from surgeon.network.published import Network, Normalisation, Pixels, named
from surgeon.network.weights import (
    CALIBRATION_BATCH,
    calibrate,
    load_weights,
    random_seed,
    varied_input,
    weights_file,
)

PREPROCESSING: dict[str, Normalisation | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": None,
}

AS_MADE = "as made by the factory"
"""What the manifest says of a factory's own weights."""

FROM_PYTHON = "a module from Python"
"""What the manifest says of a network that no name leads to."""

AS_GIVEN = "as given"
"""What the manifest says of such a network's weights."""

IN_FILE = "in the file"
"""What the manifest says of the weights of a network that came from a file."""


@dataclass(frozen=True)
class Source:
    """A network that is ready to convert."""

    module: nn.Module  # eval mode; takes [N, *input_shape] float32 in the value range of `image`
    input_shape: tuple[int, ...]  # without the batch
    labels: tuple[str, ...] | None
    image: Image | None  # None where the input is not a picture
    model: Model
    temperature: float  # the default one
    extra_inputs: tuple[Port, ...] = ()  # what the module takes behind that


Samples = tuple[Tensor, ...]
"""A batch of what a network takes: its input, and the extra inputs behind it."""


def two_samples(source: Source) -> Samples:
    """Two random samples of what the module of `source` takes, the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    return varied_input(2, source.input_shape, generator), *samples(source.extra_inputs, 2, generator)


def resolve(
    source: str | nn.Module,
    *,
    weights: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    preprocess: str | None = None,
    seed: int = 0,
    input: str | None = None,
    extra_inputs: Shapes | None = None,
) -> Source:
    """The network that `source` names, or a copy of the module that it is.

    `weights` is a file (a state dict: .pth, .pt, .safetensors), a torchvision weights name (IMAGENET1K_V1), `random` or
    `random:SEED`; without it, the published ones of a named model, and a factory's own; a file holds its own, and takes
    no others. `input_shape` is (C, H, W), or whatever the network takes, without the batch; a factory or a module may
    say it in an attribute `input_shape`, as it may its `labels` and its `image_range`. `preprocess`, of pictures, is
    imagenet, half or none; without it, what the weights were trained with, and none for a factory or a module. With it,
    an input of shape (H, W, C) is a picture as well, and turned inside, so that artifacts take (C, H, W). `seed` is for
    `random`. Of a network that takes several tensors, `input` names the one that is pulled back to (the first of
    its forward), and `extra_inputs` says what the others are: by name the shape of one sample, or (shape, dtype); a
    factory or a module may say it in an attribute `extra_inputs`. Raises SurgeonError.
    """
    if preprocess is not None and preprocess not in PREPROCESSING:
        raise SurgeonError(f"there is no preprocessing {preprocess!r}", f"Choose {', '.join(PREPROCESSING)}")
    drawn = random_seed(weights, seed)
    if drawn is not None:
        weights = "random" if drawn == 0 else f"random:{drawn}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn or 0)
        network = _build(source, weights, input_shape, input, extra_inputs)
    if input_shape is not None:
        network = replace(network, input_shape=tuple(input_shape), image=_resized(network.image, tuple(input_shape)))
    module = network.module.eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    called, ports = network.ports[0], network.with_extra_inputs
    if ports is None:
        module, called, ports = arrange(module, input, extra_inputs or network.extra_inputs)
    image, shape = network.image, network.input_shape
    if preprocess is not None:
        image, shape = (image, shape) if image is not None else _turned(shape)
        image = _normalised(image, PREPROCESSING[preprocess], shape)
    if image is not None and (image.mean is not None or image.channels_last):
        module = Pixels(module, image.mean, image.std, channels_last=image.channels_last).eval()
    if drawn is not None:
        _calibrate(module, shape, drawn, ports)
    origin = source if isinstance(source, str) else FROM_PYTHON
    model = Model(network.name, origin, network.weights, network.licence, parameters, called, network.ports[1])
    return Source(module, shape, network.labels, image, model, network.temperature, ports)


def resolve_again(manifest: Manifest, *, source: str | None = None, weights: str | None = None) -> Source:
    """The network that a bundle was exported from, with the input shape and preprocessing that its manifest states.

    `source` and `weights` replace what the manifest says of them: it knows a weights file by its name alone.
    """
    if source is None and manifest.model.source == FROM_PYTHON:
        raise SurgeonError(
            f"{manifest.model.name} was exported from Python, and no name leads to it",
            "Give --source package.module:factory",
        )
    file, _ = _file(source or manifest.model.source)
    if source is None and file is not None and not file.is_file():
        raise SurgeonError(
            f"{manifest.model.name} was exported from {manifest.model.source}, which is not here",
            "Give --source FILE",
        )
    if weights is None and manifest.model.weights not in (AS_MADE, AS_GIVEN, IN_FILE):
        weights = manifest.model.weights
    image = manifest.image
    if image is not None:
        size, channels = (image.height, image.width), (image.channels,)
        shape: tuple[Any, ...] = (*size, *channels) if image.channels_last else (*channels, *size)
    else:
        shape = next(iter(manifest.artifacts.values())).inputs[0].shape[1:]
    fixed = tuple(size for size in shape if isinstance(size, int))
    input_shape = fixed if len(fixed) == len(shape) else None
    preprocess = _preprocessing_name(image, source or manifest.model.source)
    extra_inputs = {port.name: (port.shape[1:], port.dtype) for port in manifest.extra_inputs}
    return resolve(
        source or manifest.model.source,
        weights=weights,
        input_shape=input_shape,
        preprocess=preprocess,
        input=manifest.model.input,
        extra_inputs=extra_inputs,
    )


def _preprocessing_name(image: Image | None, source: str) -> str | None:
    """The name under which `image` was normalised; None for a named model's own way, and for what is no picture."""
    if image is None:
        return None
    if image.mean is None:
        return "none"
    for name, normalisation in PREPROCESSING.items():
        if normalisation is not None and (image.mean, image.std) == _for_channels(normalisation, image.channels):
            return name
    return None


def _build(
    source: str | nn.Module,
    weights: str | None,
    input_shape: tuple[int, ...] | None,
    input: str | None,
    extra_inputs: Shapes | None,
) -> Network:
    if isinstance(source, nn.Module):
        return _from_module(source, weights, input_shape)
    if not isinstance(source, str):
        raise SurgeonError(f"a {type(source).__name__} is no model", "Give a name, package.module:factory, or a module")
    file, output = _file(source)
    if file is not None:
        return _from_file(file, output, weights, input_shape, input, extra_inputs)
    module, colon, _ = source.partition(":")
    if os.sep in module or module.endswith(".py") or ("." in module and not colon):
        raise SurgeonError(
            f"{source} is no network: surgeon reads files that end in .onnx or .pt2",
            "Give one of those, or package.module:factory, which runs from the folder that holds it",
        )
    if ":" in source:
        return _from_factory(source, weights, input_shape)
    return named(source, weights)


def _file(source: str) -> tuple[Path | None, str | None]:
    """FILE.onnx or FILE.pt2, and the output that FILE:OUTPUT names; no path where `source` is something else."""
    found = re.fullmatch(r"(.+?\.(?:onnx|pt2))(?::(.*))?", source, flags=re.IGNORECASE)
    return (Path(found[1]), found[2]) if found else (None, None)


def _from_file(
    path: Path,
    output: str | None,
    weights: str | None,
    input_shape: tuple[int, ...] | None,
    input: str | None,
    extra_inputs: Shapes | None,
) -> Network:
    if weights is not None:
        raise SurgeonError(f"{path.name} has its weights, and takes no others ({weights})", "Leave --weights out")
    if output == "":
        raise SurgeonError(f"{path}: names no output", f"Write {path}:OUTPUT, or {path} alone")
    if not path.is_file():
        raise SurgeonError(f"there is no file {path}", "Give the path of an .onnx or .pt2 file")
    if path.suffix.lower() == ".onnx":
        from surgeon.network.importer.onnx_file import import_onnx as read
    else:
        from surgeon.network.importer.exported_program import import_program as read
    imported = read(path, output, input_shape, input, extra_inputs)
    ports = (imported.input_name, imported.output_name)
    shape = imported.input_shape
    image = _picture(shape, (-1.0, 1.0))
    return Network(
        imported.module,
        path.stem,
        IN_FILE,
        "unknown",
        shape,
        image,
        None,
        ports=ports,
        with_extra_inputs=imported.extra_inputs,
    )


def _from_factory(source: str, weights: str | None, input_shape: tuple[int, ...] | None) -> Network:
    factory, module = _call_factory(source)
    require_capturable(module)
    name = source.rpartition(":")[2].rpartition(".")[2]
    return _own(module, factory, name, source, AS_MADE, weights, input_shape)


def _from_module(module: nn.Module, weights: str | None, input_shape: tuple[int, ...] | None) -> Network:
    require_capturable(module)
    name = type(module).__name__
    own = copied(module).cpu()  # the caller's own keeps its mode, its gradients and its device
    return _own(own, module, name, f"the module {name}", AS_GIVEN, weights, input_shape)


def _own(
    module: nn.Module,
    owner: Any,
    name: str,
    described: str,
    label: str,
    weights: str | None,
    input_shape: tuple[int, ...] | None,
) -> Network:
    """The user's own network; what it does not say itself is looked up at `owner`."""
    if weights is not None:
        label = weights
        if random_seed(weights, 0) is None:
            load_weights(module, weights_file(weights, []))
            label = Path(weights).name
    shape = input_shape or _attribute("input_shape", module, owner)
    if shape is None:
        raise SurgeonError(
            f"{described} does not say what it takes",
            "Give --input-shape C,H,W (from Python input_shape), or give the module an attribute input_shape",
        )
    labels, extra_inputs = _attribute("labels", module, owner), _attribute("extra_inputs", module, owner)
    image = _picture(tuple(shape), _attribute("image_range", module, owner) or (-1.0, 1.0))
    labels = tuple(labels) if labels else None
    return Network(module, name, label, "unknown", tuple(shape), image, labels, extra_inputs=extra_inputs or {})


def _picture(shape: tuple[int, ...], value_range: tuple[float, float]) -> Image | None:
    """How a photo becomes an input of `shape`, where that is grey or RGB, its channels first."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    low, high = value_range
    return _resized(Image(channels=shape[0], range=(float(low), float(high))), shape)


def _turned(shape: tuple[int, ...]) -> tuple[Image | None, tuple[int, ...]]:
    """How a photo becomes an input of `shape`, its channels last, and the shape with them first."""
    first = (*shape[-1:], *shape[:-1])
    image = _picture(first, (-1.0, 1.0))
    return (None, shape) if image is None else (replace(image, channels_last=True), first)


def _call_factory(source: str) -> tuple[Callable[[], nn.Module], nn.Module]:
    """Import and call `package.module:factory`; what goes wrong in the user's code is told in one line."""
    path, _, attribute = source.partition(":")
    with _working_directory_importable():
        try:
            found: Any = importlib.import_module(path)
        except ModuleNotFoundError as error:
            raise SurgeonError(
                f"{source}: {error}".rstrip("."), "Run from the folder that holds it, or install it"
            ) from error
        except Exception as error:
            raise SurgeonError(f"importing {path} failed ({_told(error)})", "Mend the module") from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise SurgeonError(f"{path} has no {attribute!r}", "Write package.module:factory")
            found = getattr(found, part)
        if isinstance(found, nn.Module) or not callable(found):
            raise SurgeonError(
                f"{source} is not a factory", "Name a callable without arguments that returns the module"
            )
        try:
            module = found()
        except SurgeonError:
            raise
        except Exception as error:
            raise SurgeonError(f"calling {source} failed ({_told(error)})", "It is called without arguments") from error
    if not isinstance(module, nn.Module):
        raise SurgeonError(f"{source} returned a {type(module).__name__}", "Return a torch.nn.Module")
    return found, module


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _calibrate(module: nn.Module, input_shape: tuple[int, ...], seed: int, extra_inputs: tuple[Port, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    try:
        with with_extra_inputs(module, samples(extra_inputs, CALIBRATION_BATCH, generator)):
            calibrate(module, input_shape, seed)
    except (RuntimeError, ValueError) as error:
        raise SurgeonError(
            f"the network does not take an input of {input_shape} ({_told(error)})", "Check --input-shape"
        ) from error


def _resized(image: Image | None, shape: tuple[int, ...]) -> Image | None:
    """`image` for another input shape, with the share that the crop cuts off kept; None where it is no picture."""
    if image is None or len(shape) != 3:
        return None
    channels, height, width = shape
    resize = round(image.resize * max(height, width) / max(image.height, image.width))
    return replace(image, channels=channels, height=height, width=width, resize=resize)


def _normalised(image: Image | None, normalisation: Normalisation | None, shape: tuple[int, ...]) -> Image | None:
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


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(".: ")
