"""Whether an imported network computes what ONNX Runtime makes of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from surgeon.errors import ConversionError, SurgeonError

TOLERANCE = 1e-3
"""Largest relative L2 distance: float32 rounding stays below 1e-5, and a wrong operator does not."""

HALF_TOLERANCE = 1e-2
"""The same for files in half precision, of which the network is computed in float32."""

_ELEMENTS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}

_FATAL_ONLY = 4


def require_agreement(
    path: Path,
    network: nn.Module,
    input_name: str,
    output_name: str,
    shape: tuple[int, ...],
    batch: int | None,
    tolerance: float,
) -> None:
    """Run both on random inputs, twice as many as the batch that the file fixes; raise beyond `tolerance` (L2).

    Raises SurgeonError where ONNX Runtime does not run the file, and ConversionError where the network does not run on
    so many samples, or computes something else.
    """
    rows = batch or 1
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (2 * rows, *shape)).astype(np.float32)
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    expected = [_runtime_output(path, input_name, output_name, part) for part in np.split(x, 2)]
    whole = np.stack(expected)
    if found.size != whole.size or found.shape[:1] != (2 * rows,):
        raise ConversionError(
            f"{path.name} maps {list(x.shape)} to {list(found.shape)}: its batch cannot be freed",
            "Export it with a dynamic batch, and one row of output for each sample",
        )
    error = _distance(found.reshape(whole.shape), whole)
    if error > tolerance:
        raise ConversionError(
            f"{path.name} was imported wrongly: its output is {error:.1e} from ONNX Runtime's",
            "Please report it, with the file; a batch that the file fixes is another cause",
        )


def _runtime_output(path: Path, input_name: str, output_name: str, x: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # As the file is written: what the optimiser does to it is not asked here, and takes time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = [value for value in session.get_inputs() if value.name == input_name]
        return session.run([output_name], {input_name: x.astype(_ELEMENTS.get(given.type, np.float32))})[0]
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeonError(
            f"ONNX Runtime does not run {path.name} ({reason})", "Mend it, or export it in float32"
        ) from error


def _distance(found: Any, expected: Any) -> float:
    """Relative L2 distance; infinite where one is finite and the other is not."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    difference = np.linalg.norm((found[finite] - expected[finite]).astype(np.float64))
    scale = np.linalg.norm(expected[finite].astype(np.float64))
    return float(difference / scale) if difference else 0.0
