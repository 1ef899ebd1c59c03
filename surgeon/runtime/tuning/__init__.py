"""What graphs are given for ONNX Runtime's CPU provider.

As they are written, what costs other providers nothing: `surgeon.runtime.tuning.blocked`. As they are loaded, all that
follows: the file still fits every provider. `tune` goes over a graph once. Each pass looks at one node and writes
others in its place, which give the same values up to rounding, or leaves it. What a pass is for was measured on x86,
where ONNX Runtime convolves in a layout of its own, in blocks of channels. Torch-free.
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

from surgeon.runtime.system_info import cores
from surgeon.runtime.tuning.fixed_temperature import fix_temperature, scale_by_constants
from surgeon.runtime.tuning.graph_rewriter import GraphRewriter
from surgeon.runtime.tuning.narrow import im2col_narrow_conv
from surgeon.runtime.tuning.ordering import schedule_exp_early
from surgeon.runtime.tuning.strided import subpixel_conv_transpose
from surgeon.runtime.tuning.winograd import winograd_3x3

PASSES: tuple[Callable[[GraphRewriter, NodeProto], bool], ...] = (
    scale_by_constants,
    winograd_3x3,
    subpixel_conv_transpose,
    im2col_narrow_conv,
)

_PROCESSORS = {"x86_64", "amd64"}
_LARGEST = 2**30
"""Bytes of a file, so with weights in it, that is still read and written once more to be tuned."""


def tuned(path: Path, temperature: float | None = None, threads: int | None = None) -> ModelProto | None:
    """The artifact in the file `path` as `tune` leaves it, without the weights that lie beside it.

    `threads` None means every core. None is returned where it is to be run as it is: another program's file,
    another precision or processor, larger than `_LARGEST`, or nothing to do.
    """
    if platform.machine().lower() not in _PROCESSORS or path.stat().st_size > _LARGEST:
        return None
    model = onnx.load(path, load_external_data=False)
    single = _facts(model).get("recipe", {}).get("precision") == "fp32"
    return model if single and tune(model, temperature, threads or cores()) else None


def _facts(model: ModelProto) -> dict[str, Any]:
    """What an artifact says of itself; nothing where it is another program's."""
    found = next((prop.value for prop in model.metadata_props if prop.key == "surgeon"), "{}")
    facts: dict[str, Any] = json.loads(found)
    return facts


def tune(model: ModelProto, temperature: float | None = None, threads: int = 1) -> dict[str, int]:
    """Rewrite `model`, an artifact of a bundle, in place, for so many threads; how often each pass applied, by name.

    With `temperature` it is fixed: the input of that name is gone, unless it is one for each gate.
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
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    walk(attribute.g)
            done = next((step.__name__ for step in PASSES if step(rewriter, node)), None)
            if done is None:
                rewriter.write(node)
            else:
                counts[done] += 1
        rewriter.finish()
        counts[schedule_exp_early.__name__] += schedule_exp_early(graph)

    walk(model.graph)
    return {name: count for name, count in counts.items() if count}
