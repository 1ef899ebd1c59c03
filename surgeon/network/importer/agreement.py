"""Checks that an imported network computes what ONNX Runtime computes, and each sample independently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.errors import ConversionError, SurgeonError, first_line
from surgeon.network.importer.registry import Numbers

TOLERANCE = 1e-3
"""Largest L2 distance beyond rounding, relative to the output's variation."""

ROUNDING = 10
"""Allowed distance from ONNX Runtime, as a multiple of the network's distance between float32 and float64."""

HALF_TOLERANCE = 1e-2
"""The same for files in half precision, relative to the whole output, whose offset is rounded, too."""

APART = 1e-9
"""Largest distance in float64 of a sample's output in a batch from its output alone, relative as TOLERANCE is."""

_ROUNDED = {torch.float32: 2.0**-22, torch.float64: 1e-12}
"""The least allowance for rounding, relative to the whole output."""

_ELEMENTS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}

_FATAL_ONLY = 4


def require_agreement(
    path: Path, network: nn.Module, inputs: dict[str, Tensor], output_name: str, batch: int | None, halves: bool
) -> None:
    """Run both on `inputs`, by the file's names, twice as many rows as its batch; raise where they differ.

    `halves` says that the file rounds to half precision, which the network does not. Raises SurgeonError where ONNX
    Runtime does not run the file, and ConversionError where the network does not run on so many samples, where one
    sample's output depends on the others, or where the network computes something else.
    """
    rows, values = batch or 1, list(inputs.values())
    with torch.no_grad():
        computed = network(*values).numpy()
    parts = [{name: value[i : i + rows].numpy() for name, value in inputs.items()} for i in (0, rows)]
    expected = np.stack([_runtime_output(path, part, output_name) for part in parts])
    if computed.size != expected.size or computed.shape[:1] != (2 * rows,):
        taken = list(values[0].shape)
        raise ConversionError(
            f"{path.name} maps {taken} to {list(computed.shape)}: its batch cannot be freed",
            "Export it with a dynamic batch, and one row of output for each sample",
        )
    with _in_float64(network):
        exact = _require_apart(path, network, values)
    error = _distance(computed.reshape(expected.shape), expected)
    scale, allowed = _norm(expected), HALF_TOLERANCE * _norm(expected)
    if not halves:
        rounding = max(ROUNDING * _distance_where_finite(computed, exact), _ROUNDED[torch.float32] * scale)
        scale = _variation(expected)
        allowed = TOLERANCE * scale + rounding
    if error > allowed:
        raise ConversionError(
            f"{path.name} was imported wrongly: its output is {error / scale if scale else error:.1e} from ONNX "
            "Runtime's",
            "Please report it, with the file; a batch that the file fixes is another cause",
        )


@contextmanager
def _in_float64(network: nn.Module) -> Iterator[None]:
    """The network's weights as float64 inside the context; afterwards the original float32 ones again."""
    network.double()
    try:
        yield
    finally:
        network.float()


def _require_apart(path: Path, network: nn.Module, values: Sequence[Tensor]) -> Numbers:
    """The output of `network`, which is in float64; raises ConversionError where its samples do not stay apart.

    The first and the last are computed alone: of a largest value that all share, one of them at most is the owner.
    """
    wide = [value.double() if value.is_floating_point() else value for value in values]
    with torch.no_grad():
        together: Numbers = network(*wide).numpy()
        allowed = APART * _variation(together) + _ROUNDED[torch.float64] * _norm(together)
        for place in (slice(0, 1), slice(-1, None)):
            alone, among = network(*(value[place] for value in wide)).numpy(), together[place]
            # A batch of one may be squeezed, which does not happen with a free batch.
            if alone.size != among.size or _distance(alone.reshape(among.shape), among) > allowed:
                raise ConversionError(
                    f"{path.name} mixes the samples of a batch: the output of one depends on the others",
                    "Export it without a sum, mean or norm over the batch",
                )
    return together


def _runtime_output(path: Path, inputs: dict[str, Any], output_name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # Without the optimiser, which takes time and whose result is not tested here.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        types = {value.name: _ELEMENTS.get(value.type) for value in session.get_inputs()}
        feeds = {name: value.astype(types[name] or value.dtype) for name, value in inputs.items() if name in types}
        return session.run([output_name], feeds)[0]
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise SurgeonError(
            f"ONNX Runtime does not run {path.name} ({first_line(error)})", "Mend it, or export it in float32"
        ) from error


def _distance(found: Numbers, expected: Numbers) -> float:
    """L2 distance; infinite if a value is finite on one side only."""
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return float("inf")
    return _distance_where_finite(found, expected)


def _distance_where_finite(found: Numbers, expected: Numbers) -> float:
    finite = np.isfinite(found) & np.isfinite(expected)
    return float(np.linalg.norm(found[finite].astype(np.float64) - expected[finite]))


def _norm(values: Numbers) -> float:
    return float(np.linalg.norm(values[np.isfinite(values)].astype(np.float64)))


def _variation(values: Numbers) -> float:
    """L2 norm of the deviation from the mean."""
    finite = values[np.isfinite(values)].astype(np.float64)
    return float(np.linalg.norm(finite - finite.mean())) if finite.size else 0.0
