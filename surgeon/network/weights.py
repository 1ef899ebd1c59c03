"""Weights for a network: from a file that fits it, or random ones that make comparisons meaningful."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from surgeon.errors import SurgeonError, first_line

CALIBRATION_BATCH = 4
"""Batch of the one forward pass from which batch norms take their statistics."""

SMALLEST_VARIANCE = 0.5
"""A batch norm's variance of a channel is at least this many times the mean over its channels."""

SHOWN = 3
"""How many keys of a state dict that does not fit an error lists."""

_OLD_DENSENET_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var|num_batches_tracked))$"
)


def random_seed(weights: str | None, seed: int) -> int | None:
    """The seed of random weights: `seed` for `random`, 7 for `random:7`; None for other weights."""
    kind, _, number = (weights or "").partition(":")
    if kind != "random":
        return None
    if number and not number.isdecimal():
        raise SurgeonError(f"{weights!r} is no seed of random weights", "Write random, or random:7")
    return int(number) if number else seed


def weights_file(weights: str, names: list[str]) -> Path:
    """`weights` as the path of a file; raises SurgeonError, with the published `names`, if there is no such file."""
    if not Path(weights).is_file():
        known = f" ({', '.join(names)})" if names else ""
        raise SurgeonError(f"there are no weights {weights!r}", f"Give a file, random, or a published name{known}")
    return Path(weights)


def load_weights(module: nn.Module, file: Path) -> None:
    """Load the state dict in `file` (.pth, .pt, .safetensors) into `module`; keys and shapes must match.

    Also read are checkpoints that hold it under `state_dict` or `model`, the prefix `module.` of data-parallel training
    and the keys of torchvision's published DenseNets. Raises SurgeonError with the first keys that do not match.
    """
    state = _renamed(_state_dict(file))
    expected = module.state_dict()
    faults = {
        "missing": [key for key in expected if key not in state and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {_shape(state[key])} for {_shape(expected[key])}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    if any(faults.values()):
        mismatches = "; ".join(
            f"{len(keys)} {fault}: {', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''}"
            for fault, keys in faults.items()
            if keys
        )
        raise SurgeonError(
            f"{file.name} does not fit the network ({mismatches})", "Give the weights of this very network"
        )
    module.load_state_dict(state, strict=False)


def calibrate(module: nn.Module, input_shape: tuple[int, ...], seed: int) -> None:
    """Make fresh random weights usable: batch norms take statistics from one pass, and zero layers are redrawn.

    Untrained networks vanish or explode, or have a head of zeros, and then all comparisons agree. With scale 1 and
    shift 0 in batch norms they are chaotic instead: rounding alone moves the soft pullback of a ResNet50 by 1e-4, and
    two steps of an ascent by 1e-2. Smaller scales and positive shifts, drawn per channel, reduce that to 5e-6, as in
    trained networks. A channel that a ReLU shuts for nearly all samples would be divided by almost zero, and explode
    for the rest; therefore variances are at least a fraction of their layer's mean.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and not layer.weight.any():
                layer.weight.normal_(0.0, layer.weight[0].numel() ** -0.5, generator=generator)
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            if norm.affine:
                norm.weight.uniform_(0.3, 0.8, generator=generator)
                norm.bias.uniform_(0.0, 1.0, generator=generator)
            norm.momentum = None  # the plain average over one batch
            norm.train()
        try:
            module(varied_input(CALIBRATION_BATCH, input_shape, generator))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                if norm.running_var is not None:
                    norm.running_var.clamp_(min=SMALLEST_VARIANCE * norm.running_var.mean().item())
                norm.eval()


def varied_input(
    batch: int, shape: tuple[int, ...], generator: torch.Generator, low: float = -1.0, high: float = 1.0
) -> Tensor:
    """Random inputs [batch, *shape], float32 in [low, high]: every second one is smooth like a photo, the others noise.

    White noise alone averages out in deep networks, for which all samples would look the same.
    """
    values = torch.rand((batch, *shape), generator=generator)
    if len(shape) == 3 and min(shape[1:]) > 1:
        coarse = torch.rand((batch, shape[0], 5, 5), generator=generator)
        smooth = F.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)
        values[::2] = (0.9 * smooth + 0.1 * values)[::2]
    return low + (high - low) * values.clamp(0, 1)


def _state_dict(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise SurgeonError(f"there is no weights file {file}", "Give a file, a torchvision weights name, or random")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise SurgeonError(
            f"{file.name} cannot be read as weights ({first_line(error)})", "Save a state_dict with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SurgeonError(f"{file.name} holds no state dict", "Save module.state_dict() with torch.save")
    return state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"
