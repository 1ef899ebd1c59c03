"""The ONNX artifacts of a bundle: `pullback.onnx` from the exporter, the two ascents grafted from it, `gates.onnx`.

The exporter translates the pullback graph once. Objective and step are written by hand and joined to it by name, and
the `Loop` of `ascent.onnx` holds one such step. All initializers refer to one file of weights: nothing is translated or
stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, helper
from torch.export import ExportedProgram

from surgeon.bundle.ports import GATES
from surgeon.conversion.writers.loop import ascent, ascent_step
from surgeon.conversion.writers.plan import Plan
from surgeon.conversion.writers.pullback_graph import translate_program
from surgeon.conversion.writers.sharing import share_weights
from surgeon.conversion.writers.step_graph import objective_graph, step_graph
from surgeon.errors import ConversionError, first_line
from surgeon.runtime.graphs import shape_of
from surgeon.runtime.tuning import tune
from surgeon.runtime.tuning.blocked import keep_blocked

WEIGHTS = "weights.bin"


def write_onnx(program: ExportedProgram, folder: Path, plan: Plan) -> dict[str, int]:
    """Write pullback.onnx, ascent_step.onnx, ascent.onnx and weights.bin into `folder`.

    `program` is what `surgeon.conversion.rewriting.record_pullback` returns. Returns how often each pass of
    `surgeon.runtime.tuning` applied to the first file.
    """
    pullback = translate_program(program, folder / "pullback.onnx", WEIGHTS, plan, ["output", "pullback"])
    passes = keep_blocked(pullback.graph) if plan.keeps_blocked else {}
    ranks = {port.name: len(shape_of(port)) for port in pullback.graph.output}
    objective = objective_graph(plan.recipe, ranks["output"])
    step = step_graph(plan.recipe, plan.value_range, ranks["pullback"])
    models = {
        "pullback.onnx": pullback,
        "ascent_step.onnx": ascent_step(pullback, objective, step),
        "ascent.onnx": ascent(pullback, objective, step),
    }
    for name, model in models.items():
        applied = _save(model, folder / name, plan)
        passes |= applied if name == "pullback.onnx" else {}
    return passes


def write_gates(program: ExportedProgram, folder: Path, plan: Plan) -> None:
    """Write gates.onnx into `folder`, after the other files: weights that they have in weights.bin are stored once.

    `program` records a `surgeon.conversion.probe.GateProbe`.
    """
    own = Path(GATES).with_suffix(".bin").name
    model = translate_program(program, folder / GATES, own, plan, plan.gate_outputs)
    if plan.keeps_blocked:
        keep_blocked(model.graph)
    pullback = onnx.load(folder / "pullback.onnx", load_external_data=False)
    share_weights(model, pullback, folder, own, WEIGHTS)
    _save(model, folder / GATES, plan)


def _save(model: ModelProto, path: Path, plan: Plan) -> dict[str, int]:
    """Write the finished file; return how often each pass of `surgeon.runtime.tuning` applied."""
    helper.set_model_props(model, {"surgeon": plan.facts})
    applied = tune(model) if plan.keeps_blocked and plan.recipe.layout == "tuned" else {}
    _add_defaults(model, plan.onnx_defaults)
    model.producer_name = "surgeon"
    onnx.save(model, path)
    _check(path)
    return applied


def _check(path: Path) -> None:
    """Raise ConversionError where the file is not valid ONNX."""
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        # Known with free sizes: the network reads, on its way, a size that the output has and the input has not.
        raise ConversionError(
            f"{path.name} cannot be ordered: it reads a size of the output before the output is there "
            f"({first_line(error)})",
            "Leave --dynamic-size out, or give --formats torchscript",
        ) from error


def embed_weights(folder: Path) -> None:
    """Move the shared weights into each ONNX file of `folder` (protobuf holds at most 2 GB a file)."""
    for path in sorted(folder.glob("*.onnx")):
        onnx.save(onnx.load(path), path)
    (folder / WEIGHTS).unlink()


def _add_defaults(model: ModelProto, defaults: Mapping[str, Any]) -> None:
    """Give inputs their defaults, as initializers of the same name: a caller may leave them out (ONNX IR)."""
    for port in model.graph.input:
        if port.name in defaults:
            sizes = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
            values = defaults[port.name] if sizes else [defaults[port.name]]
            kind = port.type.tensor_type.elem_type
            model.graph.initializer.append(helper.make_tensor(port.name, kind, sizes, values))
