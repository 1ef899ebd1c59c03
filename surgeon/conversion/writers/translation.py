"""From an fx graph to an ONNX graph, by torch.onnx, with its constants folded."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript import INT64, optimizer
from onnxscript.function_libs.torch_lib import ops, registration  # noqa: F401  the functions fill the registry
from onnxscript.function_libs.torch_lib.tensor_typing import TTensor
from onnxscript.onnx_opset import opset18
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from surgeon.conversion.rules.registry import PRESERVED_OPS
from surgeon.errors import ConversionError, first_line

INLINE_BYTES = 1024
"""Smaller initializers stay in the .onnx file."""

_KNOWN = PRESERVED_OPS | {
    *(torch.ops.aten.reshape.default, torch.ops.aten.matmul.default, torch.ops.aten.sym_size.int),
    torch.ops.aten.upsample_nearest2d.vec,
}
"""Operators that PyTorch composes of others, and that torch.onnx translates as they are."""

_ops: Any = opset18  # its annotations allow neither type variables nor numbers


def translate(
    module: ExportedProgram | nn.Module,
    arguments: tuple[Tensor, ...],
    shapes: tuple[Any, ...] | None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    optimize: bool = False,
) -> onnx_ir.Model:
    """torch.onnx.export without its progress and its advice; its errors become ConversionError.

    A program is used up: it may be changed in place.
    """
    options: dict[str, Any] = {
        "dynamo": True,
        "opset_version": opset,
        "input_names": list(inputs),
        "output_names": list(outputs),
        "dynamic_shapes": shapes,
        "custom_translation_table": TRANSLATIONS,
        "optimize": optimize,
        "verbose": False,
    }
    try:
        with _silent():
            program = None
            if isinstance(module, ExportedProgram):
                program = _translated_as_recorded(module, options)
            program = program or torch.onnx.export(module, arguments, **options)
        assert program is not None
        return program.model
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConversionError(
            f"torch.onnx cannot translate the graph to opset {opset} ({first_line(cause)})",
            "Leave this operator out, choose another --opset, or --formats torchscript",
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _translated_as_recorded(program: ExportedProgram, options: dict[str, Any]) -> torch.onnx.ONNXProgram | None:
    """`program` translated without being traced again; None where that fails, as with operators to be decomposed first.

    The exporter asks every program for its decompositions, and tracing is most of what translating one takes (80% of a
    MobileNetV3's pullback), though the rules of `surgeon.conversion.rules` write operators that it knows already. It
    also parses the source of all 500 functions of its library, as long as a small network takes for the rest.
    """
    once = copy.copy(program)
    graphs = [module.graph for module in once.graph_module.modules() if isinstance(module, GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}

    def decompose(table: dict[Any, Any]) -> ExportedProgram:
        if any(_is_composed(target, table) for target in targets):
            raise ValueError("operators to be decomposed")
        return once

    once.run_decompositions = decompose
    library = registration.default_registry
    functions = library._registry
    wanted = {_packet(target) for target in targets} | _PROMOTING
    library._registry = {name: function for name, function in functions.items() if name.partition(".")[0] in wanted}
    try:
        return torch.onnx.export(once, (), **options)
    except torch.onnx.errors.OnnxExporterError:
        return None  # whatever is wrong, the ordinary way says it
    finally:
        library._registry = functions


def _packet(target: Any) -> str:
    """The name of an operator in onnxscript's library, without its overload, which type promotion may change."""
    if isinstance(target, OpOverload):
        return target.name().partition(".")[0]
    return f"{getattr(target, '__module__', '')}::{getattr(target, '__name__', '')}"


_PROMOTING = {"aten::scalar_tensor", "prims::convert_element_type"}
"""Operators that the exporter's type promotion adds."""


def _is_composed(target: Any, table: dict[Any, Any]) -> bool:
    """Whether tracing would decompose the operator: the table holds it, or PyTorch itself composes it."""
    return target in table or (isinstance(target, OpOverload) and target._can_decompose() and target not in _KNOWN)


def floor_division(a: INT64, b: INT64) -> Any:
    """Python's a // b, of sizes: (a - a mod b) / b, where ONNX's Mod has the sign of b, and its Div truncates.

    torch.onnx takes only the quotient, which is one too large for -(-h // 2) at an odd h.
    """
    return _ops.Div(_ops.Sub(a, _ops.Mod(a, b)), b)


def scalar_product(x: TTensor, factor: float) -> Any:
    """x times a number that may be computed from sizes; torch.onnx expects a constant."""
    return _ops.Mul(x, _ops.CastLike(factor, x))


def global_max_pool(x: TTensor, output_size: Sequence[int]) -> Any:
    """Maximum of each map and its place: the one case of adaptive max pooling that the rules leave."""
    places = _ops.ArgMax(_ops.Reshape(x, [0, 0, -1]), axis=2, keepdims=1)
    return _ops.ReduceMax(x, [2, 3], keepdims=1), _ops.Unsqueeze(places, [3])


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.floordiv: floor_division,
    torch.ops.aten.adaptive_max_pool2d.default: global_max_pool,
    torch.ops.aten.mul.Scalar: scalar_product,
}
"""Translations that replace those of torch.onnx."""


def fold(model: onnx_ir.Model) -> onnx_ir.Model:
    """Fold small constants only: a runtime folds flipped kernels when it loads; stored, they would double the file.

    onnxscript's own optimizer also tries its rewriting rules at every node, which takes up to 14 times as long (half a
    minute for a ResNet50 with group norms) and finds only what a runtime finds when it loads, such as products with 1.
    """
    optimizer.inline(model)
    for _ in range(2):  # what is folded first may leave more to fold
        optimizer.fold_constants(model, onnx_shape_inference=True, output_size_limit=INLINE_BYTES)
        optimizer.remove_unused_nodes(model)
    _TIDY(model)
    return model


_TIDY = Sequential(
    common.RemoveUnusedOpsetsPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)


def export_plain(module: nn.Module, example: Tensor, path: Path, opset: int = 18) -> None:
    """The ordinary ONNX export of a network, with its weights beside it: what a bundle is measured against."""
    model = translate(module.eval(), (example,), ({0: Dim("batch", min=1)},), ["input"], ["output"], opset, True)
    onnx_ir.save(model, path, external_data=path.stem + ".bin", size_threshold_bytes=INLINE_BYTES)
