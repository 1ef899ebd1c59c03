"""From a module to its explicit pullback graph: captured, optimised, and recorded with its reverse sweep."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx import traceback as fx_traceback
from torch.fx.graph import CodeGen

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.any_size import require_any_size
from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.capture.nodes import where
from surgeon.conversion.passes.optimise import optimise, optimise_pullback
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.sweep import RuleFailure
from surgeon.errors import ConversionError, SurgeonError, first_line
from surgeon.network.inputs import Example, same_batch, tensors
from surgeon.network.layers import joined
from surgeon.network.modules import explaining_inputs, require_capturable, silent_torch
from surgeon.network.sizes import REMEDY, dynamic

Kind = TypeVar("Kind", bound=PullbackModule)


@dataclass(frozen=True)
class CapturedNetwork:
    """A network that is captured and optimised: every kind of pullback is recorded from this one capture.

    `examples` are the tensors that it was captured with, and `passes` says how often each pass applied. `unoptimised`
    is the graph before the passes, with the same weights, where `recipe.at` names a node: what an oracle can follow.
    """

    captured: Captured
    recipe: Recipe
    examples: tuple[Tensor, ...]
    passes: dict[str, int]
    unoptimised: GraphModule | None = None


class RecordedPullback(NamedTuple, Generic[Kind]):
    """A pullback as one exported program, the module that it records, and how often each pass applied."""

    program: ExportedProgram
    pullback: Kind
    passes: dict[str, int]


def capture_network(module: nn.Module, example: Example, recipe: Recipe | None = None) -> CapturedNetwork:
    """Capture `module` as called on `example` and optimise its graph; raises as `surgeon.conversion.capture` does."""
    recipe = recipe or Recipe()
    require_capturable(module)
    with explaining_inputs(module, example):
        captured = capture(module, example, recipe.at, recipe.dynamic_size)
    unoptimised = None
    if "node" in captured.layers.values():
        unoptimised = GraphModule(captured.graph, copy.deepcopy(captured.graph.graph))
    passes = optimise(captured.graph)
    if recipe.dynamic_size:
        _refuse_static(captured)
    return CapturedNetwork(captured, recipe, tensors(example), passes, unoptimised)


@overload
def record_pullback(network: CapturedNetwork) -> RecordedPullback[PullbackModule]: ...


@overload
def record_pullback(network: CapturedNetwork, kind: type[Kind]) -> RecordedPullback[Kind]: ...


def record_pullback(network: CapturedNetwork, kind: type[PullbackModule] = PullbackModule) -> RecordedPullback[Any]:
    """Record forward and pullback of `network` as one exported program; `network` stays as it is.

    The program takes (input, cotangent), the temperature where a gate or pool reads it, and the network's other inputs.
    It returns what a `kind` of pullback does. Raises ConversionError where torch.export cannot record it.
    """
    captured, recipe = network.captured, network.recipe
    pullback = kind(captured, recipe)
    first, *extra_examples = network.examples
    extra_inputs = tuple(extra_examples[place] for place in captured.used_inputs)
    with torch.no_grad():
        cotangent = torch.zeros_like(joined(captured.graph(first, *extra_inputs)))
    positional, named, shapes = _arguments(captured, pullback, first, cotangent, extra_inputs)
    with fx_traceback.preserve_node_meta(), warnings.catch_warnings(), torch.no_grad():
        try:
            with silent_torch(), same_batch(pullback):
                program = torch.export.export(pullback, positional, named, dynamic_shapes=shapes)
        except RuleFailure as error:
            if not recipe.dynamic_size:
                raise
            raise ConversionError(error.message, REMEDY) from error
        except SurgeonError:
            raise
        except Exception as error:  # torch.export's exceptions, and those of fake tensors, have no common base
            raise ConversionError(
                f"torch.export cannot record the pullback ({first_line(error)})",
                REMEDY if recipe.dynamic_size else "Please report it, with the network's source",
            ) from error
        if recipe.dynamic_size:
            require_any_size(program, pullback, captured.graph, first)
    _read_sizes_of_output(program)
    return RecordedPullback(program, pullback, network.passes | optimise_pullback(program))


@overload
def rewrite_program(
    module: nn.Module, example: Example, recipe: Recipe | None = None
) -> tuple[ExportedProgram, PullbackModule]: ...


@overload
def rewrite_program(
    module: nn.Module, example: Example, recipe: Recipe | None = None, *, kind: type[Kind]
) -> tuple[ExportedProgram, Kind]: ...


def rewrite_program(
    module: nn.Module, example: Example, recipe: Recipe | None = None, *, kind: type[PullbackModule] = PullbackModule
) -> tuple[ExportedProgram, PullbackModule]:
    """Capture `module` and record one `kind` of pullback: `capture_network`, then `record_pullback`."""
    program, pullback, _ = record_pullback(capture_network(module, example, recipe), kind)
    return program, pullback


def _arguments(
    captured: Captured, pullback: PullbackModule, first: Tensor, cotangent: Tensor, extra_inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], dict[str, Any] | None, dict[str, Any]]:
    """Positional and keyword arguments to record `pullback` with, and the sizes of each that stay dynamic."""
    output = captured.outputs[0].meta["val"] if len(captured.outputs) == 1 else cotangent
    arguments: dict[str, Any] = {"input": first, "cotangent": cotangent}
    shapes: dict[str, Any] = {
        "input": dynamic(captured.input.meta["val"].shape),
        "cotangent": dynamic(output.shape),
    }
    if pullback.uses_temperature:
        sizes = [len(pullback.gates)] if pullback.per_gate else []
        arguments["temperature"], shapes["temperature"] = torch.ones(sizes, dtype=first.dtype), None
    if extra_inputs:
        batched = [bool(x.dim()) and x.shape[0] == first.shape[0] for x in extra_inputs]
        shapes["extra_inputs"] = tuple(
            dynamic(x.shape) if moves else None for x, moves in zip(extra_inputs, batched, strict=True)
        )
    named = {"extra_inputs": extra_inputs} if extra_inputs else None
    return tuple(arguments.values()), named, shapes


def _refuse_static(captured: Captured) -> None:
    """Raise ConversionError for adaptive max pooling to several cells, which is decomposed for one size only."""
    for node in captured.graph.graph.nodes:
        if "adaptive_max" in str(node.target) and node.op == "call_function" and set(node.args[1]) != {1}:
            raise ConversionError(f"{where(node)} has cells of other sizes at another height and width", REMEDY)


def _read_sizes_of_output(program: ExportedProgram) -> None:
    """Replace sizes that are read from the cotangent by the same sizes of an earlier value.

    Ascents compute the cotangent from the output, after the network may have read that size. The earlier value is the
    input, or the first computed one that has the size.
    """
    graph, names = program.graph, program.graph_signature.user_inputs
    image, cotangent = (node for name in names[:2] for node in graph.nodes if node.name == name)
    output = next(node for node in graph.nodes if node.name == program.graph_signature.user_outputs[0])
    computed = [node for node in graph.nodes if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)]
    shapes = {value: [str(size) for size in value.meta["val"].shape] for value in (image, *computed)}
    for node in [user for user in cotangent.users if user.target is torch.ops.aten.sym_size.int]:
        size = str(node.meta["val"])
        places = [(value, shape.index(size)) for value, shape in shapes.items() if size in shape]
        source, axis = [*places, (output, node.args[1])][0]
        with graph.inserting_before(node if source is image else source.next):
            read = graph.call_function(node.target, (source, axis))
        read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
        graph.erase_node(node)


def rewrite(module: nn.Module, example: Example, recipe: Recipe | None = None) -> GraphModule:
    """The explicit pullback graph of `module`: (input, cotangent, temperature, …) -> (output, pullback).

    `example` is an input, [N, …] floating point; the batch of the result is dynamic. It may be a tuple of tensors, the
    module's arguments: the first is differentiated, and the graph takes the others that the output depends on after the
    temperature. Under recipes without soft gates and pools there is no temperature; under
    `temperature_input="per-gate"` it has one entry per gate. The graph calls no autograd; each node's
    `meta["custom"]["surgeon"]` names the forward node, the source module and the role (forward or backward). Raises
    ConversionError as `PullbackModule` does.
    """
    examples = tensors(example)
    batch = len(examples[0])
    if batch < 2:
        examples = tuple(torch.cat([x, x]) if x.dim() and len(x) == batch else x for x in examples)
    program, _ = rewrite_program(module, examples, recipe)
    return explicit_graph(program)


def explicit_graph(program: ExportedProgram) -> GraphModule:
    """`program` as a plain fx graph: flat inputs, a tuple of outputs, parameters by get_attr, no run-time guards."""
    unlifted = program.module(check_guards=False)
    graph = unlifted.graph
    graph.set_codegen(CodeGen())
    for node in graph.nodes:
        node.meta["custom"] = {key: value for key, value in node.meta.get("custom", {}).items() if key == "surgeon"}
    plain = GraphModule(unlifted, graph, "PullbackGraph")
    plain.graph.eliminate_dead_code()
    plain.recompile()
    return plain
