"""From what the user typed to a network in eval mode, with its preprocessing inside and its labels beside it.

A source is a name (`surgeon.network.published`), `package.module:factory`, a file (.onnx, .pt2), or, from Python, a
module. Only torchvision's download of its own weights uses the internet.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Image, Manifest, Model, Port
from surgeon.errors import SurgeonError, named_line
from surgeon.network.factories import call_factory
from surgeon.network.inputs import Shapes, arrange, samples, with_extra_inputs
from surgeon.network.modules import copied, require_capturable
from surgeon.network.preprocessing import (
    PREPROCESSING,
    Pixels,
    channels_first,
    normalised,
    picture,
    preprocessing_name,
    resized,
)
from surgeon.network.published import Network, named
from surgeon.network.weights import (
    CALIBRATION_BATCH,
    calibrate,
    load_weights,
    random_seed,
    varied_input,
    weights_file,
)

AS_MADE = "as made by the factory"
"""The manifest's text for a factory's own weights."""

FROM_PYTHON = "a module from Python"
"""The manifest's text for the source of a module from Python."""

AS_GIVEN = "as given"
"""The manifest's text for the weights of a module from Python."""

IN_FILE = "in the file"
"""The manifest's text for the weights of a network from a file."""


@dataclass(frozen=True)
class Source:
    """A network that is ready to convert."""

    module: nn.Module  # eval mode; takes [N, *input_shape] float32 in the value range of `image`
    input_shape: tuple[int, ...]  # without the batch
    labels: tuple[str, ...] | None
    image: Image | None  # None where the input is not a picture
    model: Model
    temperature: float  # the default one
    extra_inputs: tuple[Port, ...] = ()  # of the module, after its input


Samples = tuple[Tensor, ...]
"""A batch of a network's arguments: its input, then its extra inputs."""


def two_samples(source: Source) -> Samples:
    """Two random samples of the inputs of `source`, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return varied_input(2, source.input_shape, generator), *samples(source.extra_inputs, 2, generator)


@dataclass(frozen=True)
class SourceOptions:
    """Facts that a source lacks, or that replace its own: see `resolve`."""

    weights: str | None = None
    input_shape: tuple[int, ...] | None = None
    preprocess: str | None = None
    input: str | None = None
    extra_inputs: Shapes | None = None


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
    `random:SEED`; the default are the published ones of a named model, and a factory's own. A file brings its weights,
    and takes no others. `input_shape` is (C, H, W), or any other shape without the batch; a factory or a module may
    state it in an attribute `input_shape`, and likewise its `labels`, `image_range` and `extra_inputs`. `preprocess` is
    imagenet, half or none, for pictures; the default is the preprocessing that the weights were trained with, and none
    for a factory or a module. With `preprocess`, an input of shape (H, W, C) is a picture, too: the network is wrapped
    so that artifacts take (C, H, W). `seed` is for `random`. Of a network with several inputs, `input` names the one
    that is differentiated (default: the first of its forward), and `extra_inputs` gives the shape of one sample of
    each of the others by name, or (shape, dtype). Raises SurgeonError.
    """
    return resolve_with(source, SourceOptions(weights, input_shape, preprocess, input, extra_inputs), seed)


def resolve_with(source: str | nn.Module, options: SourceOptions, seed: int = 0, calibrated: bool = True) -> Source:
    """As `resolve`, with its options as one value.

    Without `calibrated`, random weights stay as drawn: enough to look at the structure, and no forward pass.
    """
    preprocess, input_shape = options.preprocess, options.input_shape
    if preprocess is not None and preprocess not in PREPROCESSING:
        raise SurgeonError(f"there is no preprocessing {preprocess!r}", f"Choose {', '.join(PREPROCESSING)}")
    drawn = random_seed(options.weights, seed)
    if drawn is not None:
        options = replace(options, weights="random" if drawn == 0 else f"random:{drawn}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn or 0)
        network = _build(source, options)
    if input_shape is not None:
        network = replace(network, input_shape=tuple(input_shape), image=resized(network.image, tuple(input_shape)))
    module = network.module.eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    called, ports = network.ports[0], network.with_extra_inputs
    if ports is None:
        module, called, ports = arrange(module, options.input, options.extra_inputs or network.extra_inputs)
    image, shape = network.image, network.input_shape
    if preprocess is not None:
        image, shape = (image, shape) if image is not None else channels_first(shape)
        image = normalised(image, PREPROCESSING[preprocess], shape)
    if image is not None and (image.mean is not None or image.channels_last):
        module = Pixels(module, image.mean, image.std, channels_last=image.channels_last).eval()
    if drawn is not None and calibrated:
        _calibrate(module, shape, drawn, ports)
    origin = source if isinstance(source, str) else FROM_PYTHON
    model = Model(network.name, origin, network.weights, network.licence, parameters, called, network.ports[1])
    return Source(module, shape, network.labels, image, model, network.temperature, ports)


def resolve_again(manifest: Manifest, *, source: str | None = None, weights: str | None = None) -> Source:
    """The network that a bundle was exported from, with the input shape and preprocessing of its manifest.

    `source` and `weights` replace the manifest's, which keeps only the name of a weights file.
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
    options = SourceOptions(
        weights=weights,
        input_shape=fixed if len(fixed) == len(shape) else None,
        preprocess=preprocessing_name(image),
        input=manifest.model.input,
        extra_inputs={port.name: (port.shape[1:], port.dtype) for port in manifest.extra_inputs},
    )
    return resolve_with(source or manifest.model.source, options)


def _build(source: str | nn.Module, options: SourceOptions) -> Network:
    if isinstance(source, nn.Module):
        return _from_module(source, options)
    if not isinstance(source, str):
        raise SurgeonError(f"a {type(source).__name__} is no model", "Give a name, package.module:factory, or a module")
    file, output = _file(source)
    if file is not None:
        return _from_file(file, output, options)
    module, colon, _ = source.partition(":")
    if os.sep in module or module.endswith(".py") or ("." in module and not colon):
        raise SurgeonError(
            f"{source} is no network: surgeon reads files that end in .onnx or .pt2",
            "Give one of those, or package.module:factory, which runs from the folder that holds it",
        )
    if ":" in source:
        return _from_factory(source, options)
    return named(source, options.weights)


def _file(source: str) -> tuple[Path | None, str | None]:
    """The path and the output of FILE.onnx, FILE.pt2 or FILE:OUTPUT; None and None where `source` is something else."""
    match = re.fullmatch(r"(.+?\.(?:onnx|pt2))(?::(.*))?", source, flags=re.IGNORECASE)
    return (Path(match[1]), match[2]) if match else (None, None)


def _from_file(path: Path, output: str | None, options: SourceOptions) -> Network:
    if options.weights is not None:
        raise SurgeonError(
            f"{path.name} has its weights, and takes no others ({options.weights})", "Leave --weights out"
        )
    if output == "":
        raise SurgeonError(f"{path}: names no output", f"Write {path}:OUTPUT, or {path} alone")
    if not path.is_file():
        raise SurgeonError(f"there is no file {path}", "Give the path of an .onnx or .pt2 file")
    if path.suffix.lower() == ".onnx":
        from surgeon.network.importer.onnx_file import import_onnx as read
    else:
        from surgeon.network.importer.exported_program import import_program as read
    imported = read(path, output, options.input_shape, options.input, options.extra_inputs)
    ports = (imported.input_name, imported.output_name)
    shape = imported.input_shape
    image = picture(shape, (-1.0, 1.0))
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


def _from_factory(source: str, options: SourceOptions) -> Network:
    factory, module = call_factory(source)
    require_capturable(module)
    name = source.rpartition(":")[2].rpartition(".")[2]
    return _from_user(module, factory, name, source, AS_MADE, options)


def _from_module(module: nn.Module, options: SourceOptions) -> Network:
    require_capturable(module)
    name = type(module).__name__
    copy = copied(module).cpu()  # the caller's module keeps its mode, its gradients and its device
    return _from_user(copy, module, name, f"the module {name}", AS_GIVEN, options)


def _from_user(module: nn.Module, owner: Any, name: str, described: str, label: str, options: SourceOptions) -> Network:
    """The user's own network; attributes that `module` lacks are looked up at `owner`."""
    if options.weights is not None:
        label = options.weights
        if random_seed(options.weights, 0) is None:
            load_weights(module, weights_file(options.weights, []))
            label = Path(options.weights).name
    shape = options.input_shape or _attribute("input_shape", module, owner)
    if shape is None:
        raise SurgeonError(
            f"{described} does not say what it takes",
            "Give --input-shape C,H,W (from Python input_shape), or give the module an attribute input_shape",
        )
    labels, extra_inputs = _attribute("labels", module, owner), _attribute("extra_inputs", module, owner)
    image = picture(tuple(shape), _attribute("image_range", module, owner) or (-1.0, 1.0))
    labels = tuple(labels) if labels else None
    return Network(module, name, label, "unknown", tuple(shape), image, labels, extra_inputs=extra_inputs or {})


def _calibrate(module: nn.Module, input_shape: tuple[int, ...], seed: int, extra_inputs: tuple[Port, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    try:
        with with_extra_inputs(module, samples(extra_inputs, CALIBRATION_BATCH, generator)):
            calibrate(module, input_shape, seed)
    except SurgeonError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise SurgeonError(
            f"the network does not take an input of {input_shape} ({named_line(error)})", "Check --input-shape"
        ) from error


def _attribute(name: str, *owners: Any) -> Any:
    return next((getattr(owner, name) for owner in owners if getattr(owner, name, None) is not None), None)
