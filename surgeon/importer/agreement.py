"""Whether an imported network computes what ONNX Runtime makes of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.errors import ConversionError, SurgeonError

TOLERANCE = 1e-3
"""Largest relative L2 distance: float32 rounding stays below 1e-5, and a wrong operator does not."""

HALF_TOLERANCE = 1e-2
"""The same for files in half precision, of which the network is computed in float32."""

_ELEMENTS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}

_FATAL_ONLY = 4


def require_agreement(
    path: Path, network: nn.Module, given: dict[str, Tensor], output_name: str, batch: int | None, tolerance: float
) -> None:
    """Run both on `given`, by the file's names, twice as many rows as its batch; raise beyond `tolerance` (L2).

    Raises SurgeonError where ONNX Runtime does not run the file, and ConversionError where the network does not run on
    so many samples, or computes something else.
    """
    rows = batch or 1
    with torch.no_grad():
        found = network(*given.values()).numpy()
    halves = [{name: value[i : i + rows].numpy() for name, value in given.items()} for i in (0, rows)]
    expected = [_runtime_output(path, half, output_name) for half in halves]
    whole = np.stack(expected)
    if found.size != whole.size or found.shape[:1] != (2 * rows,):
        taken = list(next(iter(given.values())).shape)
        raise ConversionError(
            f"{path.name} maps {taken} to {list(found.shape)}: its batch cannot be freed",
            "Export it with a dynamic batch, and one row of output for each sample",
        )
    error = _distance(found.reshape(whole.shape), whole)
    if error > tolerance:
        raise ConversionError(
            f"{path.name} was imported wrongly: its output is {error:.1e} from ONNX Runtime's",
            "Please report it, with the file; a batch that the file fixes is another cause",
        )


def _runtime_output(path: Path, given: dict[str, Any], output_name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # As the file is written: what the optimiser does to it is not asked here, and takes time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        types = {value.name: _ELEMENTS.get(value.type) for value in session.get_inputs()}
        feeds = {name: value.astype(types[name] or value.dtype) for name, value in given.items() if name in types}
        return session.run([output_name], feeds)[0]
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
