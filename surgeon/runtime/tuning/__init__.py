"""Graph rewrites for ONNX Runtime's CPU provider. The README beside this file has the reasons and the figures.

`blocked` runs at export because it costs other providers nothing; the other passes run at load time, so files stay
provider-neutral. `tune` visits each node once: a pass replaces it by nodes that compute the same values up to rounding,
or leaves it. Torch-free.
"""

from __future__ import annotations

import collections
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from surgeon.runtime.graphs import bodies
from surgeon.runtime.system_info import cores
from surgeon.runtime.tuning.fixed_temperature import fix_temperature, scale_by_constants
from surgeon.runtime.tuning.graph_rewriter import GraphRewriter
from surgeon.runtime.tuning.im2col_narrow import im2col_narrow_conv
from surgeon.runtime.tuning.scheduling import schedule_exp_early
from surgeon.runtime.tuning.subpixel import subpixel_conv_transpose
from surgeon.runtime.tuning.winograd import winograd_3x3

PASSES: tuple[Callable[[GraphRewriter, NodeProto], bool], ...] = (
    scale_by_constants,
    winograd_3x3,
    subpixel_conv_transpose,
    im2col_narrow_conv,
)
"""Passes at a node, in order: the first that returns True has rewritten it."""

_PROCESSORS = {"x86_64", "amd64"}
_LARGEST = 2**30
"""Bytes of the largest file (one with weights inside) that is parsed and serialised once more to be tuned."""


def tuned(
    path: Path, temperature: float | None = None, threads: int | None = None, model: ModelProto | None = None
) -> ModelProto | None:
    """The artifact in the file `path` as `tune` leaves it, without the weights that lie beside it.

    `threads` None means every core; `model` is a part of the file, to be tuned in its place. Returns None where the
    file should run as it is: it comes from another program, has another precision, is larger than `_LARGEST`, the
    processor is no x86, or there is nothing to do.
    """
    if platform.machine().lower() not in _PROCESSORS or path.stat().st_size > _LARGEST:
        return None
    model = model or onnx.load(path, load_external_data=False)
    single = _facts(model).get("recipe", {}).get("precision") == "fp32"
    return model if single and tune(model, temperature, threads or cores()) else None


def _facts(model: ModelProto) -> dict[str, Any]:
    """The facts that surgeon stored in the file; nothing where it comes from another program."""
    text = next((prop.value for prop in model.metadata_props if prop.key == "surgeon"), "{}")
    facts: dict[str, Any] = json.loads(text)
    return facts


def tune(model: ModelProto, temperature: float | None = None, threads: int = 1) -> dict[str, int]:
    """Rewrite `model`, an artifact of a bundle, in place, for `threads`; return how often each pass applied, by name.

    With `temperature`, the input of that name becomes a constant, unless it has an entry for each gate.
    """
    counts: collections.Counter[str] = collections.Counter()
    soft = all(gate["rule"] == "soft" for gate in _facts(model).get("gates", [{"rule": "unknown"}]))
    inverse = {} if temperature is None else fix_temperature(model.graph, temperature)
    if inverse:
        counts[fix_temperature.__name__] = 1

    def walk(graph: GraphProto) -> None:
        rewriter = GraphRewriter(graph, "tuned", threads=threads, soft=soft, inverse=inverse)
        for node in list(graph.node):
            if rewriter.done.issuperset(node.output):
                continue
            for body in bodies(node):
                walk(body)
            done = next((step.__name__ for step in PASSES if step(rewriter, node)), None)
            if done is None:
                rewriter.write(node)
            else:
                counts[done] += 1
        rewriter.finish()
        counts[schedule_exp_early.__name__] += schedule_exp_early(graph)

    walk(model.graph)
    return {name: count for name, count in counts.items() if count}
