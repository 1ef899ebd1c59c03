"""From any nn.Module to a functional ATen graph with a dynamic batch.

`torch.export` records the forward pass; decompositions make it functional (an in-place ReLU would otherwise overwrite
the pre-activation that its gate reads) and small, except for the operators in `surgeon.conversion.rules.PRESERVED_OPS`.
"""

from __future__ import annotations

import collections
import contextlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import GraphModule, Node

import surgeon
from surgeon.conversion.capture.any_size import require_any_size
from surgeon.conversion.capture.custom_functions import called_functions, require_own_derivatives
from surgeon.conversion.capture.decompositions import DECOMPOSITIONS, EvenChunks, GlobalPools, operators_listed_once
from surgeon.conversion.capture.nodes import qualified
from surgeon.conversion.rules import PRESERVED_OPS
from surgeon.errors import ConversionError, SurgeonError, first_line
from surgeon.network.call_patching import without_checkpoints
from surgeon.network.inputs import Example, same_batch, tensors
from surgeon.network.layers import cut, drop_inputs, drop_unread, end_at, entries, kinds
from surgeon.network.modules import evaluating, silent_torch
from surgeon.network.sizes import REMEDY
from surgeon.network.wrapping import source_modules

GATE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
"""With the gate scope "modules", calls from within one of these classes, or a subclass, are gated."""


@dataclass(frozen=True)
class Captured:
    """A network as a graph: `graph` returns one tensor, or a tuple of them, one for each layer of `layers`.

    It takes the differentiated input and the extra inputs. `used_inputs` are the positions of the extra inputs that the
    output depends on; unused ones are dropped. Its nodes call ATen overloads or read parameters (get_attr), and
    `meta["val"]` of each holds its fake value.
    """

    graph: GraphModule
    gate_classes: frozenset[str] = frozenset()  # classes of GATE_MODULES in the network, and their subclasses
    layers: dict[str, str] = field(default_factory=dict)  # kind by name: module, entry or node; ordered as `outputs`
    used_inputs: tuple[int, ...] = ()

    @property
    def input(self) -> Node:
        """The placeholder of the differentiated input."""
        return next(node for node in self.graph.graph.nodes if node.op == "placeholder")

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The nodes that are returned. They are looked up, since passes over the graph may replace them."""
        returned: Any = self.graph.graph.output_node().args[0]
        return tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)


def capture(module: nn.Module, example: Example, at: Sequence[str] = (), dynamic_size: bool = False) -> Captured:
    """Capture `module`, in evaluation mode, as called on `example`: [N >= 2, …], floating point; N stays dynamic.

    The first of several tensors is differentiated; the others may be of any dtype. `at` names the layers that become
    the outputs (`surgeon.network.layers`), and nodes above all of them are dropped; without it, the output is the one
    tensor that the module returns. With `dynamic_size`, height and width of an `example` [N, C, H, W] stay dynamic,
    too. Raises ConversionError where torch.export cannot record the module, and SurgeonError for a layer that does not
    exist.
    """
    examples = tensors(example)
    if examples[0].shape[0] < 2:
        raise ValueError("capture needs an example batch of at least 2: torch.export fixes sizes 0 and 1")
    if dynamic_size and len(examples) > 1:
        raise SurgeonError("a network of several inputs has no size that could be free", REMEDY)
    _refuse(at, dynamic_size)
    with without_checkpoints():
        with called_functions() as functions:
            returned = returned_by(module, examples)
        if functions:
            with evaluating(module):
                require_own_derivatives(module, examples)
    layers = kinds(module, at, returned)
    nodes = [name for name in at if layers[name] == "node"]
    ends = cut(module, [name for name in at if name not in nodes], everything=bool(nodes))
    is_cut = bool(at) or not isinstance(returned, Tensor)
    with ends if is_cut else contextlib.nullcontext(), without_checkpoints():
        if is_cut:
            returned_by(module, examples)  # a layer that never runs, or that is no one tensor, is refused here
        graph = record(module, *examples, dynamic_size=dynamic_size)
    known = [*source_modules(module), *entries(returned)]
    if at:
        graph = end_at(graph, at, nodes, known)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(examples):
        raise ConversionError(
            f"{type(module).__name__} takes {len(inputs)} inputs", "Wrap it in a module that takes tensors alone"
        )
    drop_unread(graph)
    used = tuple(place for place, node in enumerate(inputs[1:]) if node.users)
    if len(used) < len(inputs) - 1:
        graph = drop_inputs(graph, [node for node in inputs[1:] if not node.users])
    classes = {type(part) for part in module.modules() if isinstance(part, GATE_MODULES)}
    return Captured(graph, frozenset(map(qualified, classes)), layers, used)


def record(module: nn.Module, *examples: Tensor, dynamic_size: bool = False) -> GraphModule:
    """The functional graph of `module`, whatever it returns; raises ConversionError where torch.export fails.

    The first of `examples` is [N, …]. N stays dynamic, also as the first size of other examples with as many rows; with
    `dynamic_size`, height and width of the first example, [N, C, H, W], stay dynamic, too.
    """
    first = examples[0]
    if dynamic_size and first.dim() != 4:
        raise SurgeonError(f"an input of {first.dim() - 1} dimensions has no height and width", REMEDY)
    batch, shapes = Dim("batch", min=1), ShapesCollection()
    shapes[first] = {0: batch} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic_size else {})
    for example in examples[1:]:
        if example is not first and example.dim() and example.shape[0] == first.shape[0]:
            shapes[example] = {0: batch}
    try:
        with (
            evaluating(module),
            silent_torch(),
            operators_listed_once(),
            EvenChunks(),
            GlobalPools() if dynamic_size else contextlib.nullcontext(),  # each of 80,000 calls takes 3 µs more
            same_batch(module),
            _copying(module),
            without_checkpoints(),
        ):
            program = _exported(module, examples, shapes)
            recorded = program
            _detach_untracked(program)
            table = torch.export.default_decompositions()
            table.update(DECOMPOSITIONS)
            for operator in PRESERVED_OPS:
                table.pop(operator, None)
            graph = program.run_decompositions(table).module(check_guards=False)
    except Exception as error:
        free = "batch, height and width" if dynamic_size else "batch"
        causes = "Data-dependent control flow and a fixed batch are the usual causes; `surgeon check` names the piece"
        reason = first_line(error)
        if reason.startswith(_VIOLATED):
            taken = "it takes them for fixed numbers, as a kernel's size, a count of steps or a factor"
            reason = taken if dynamic_size else "it takes it for a fixed number, as a size, or a count of samples"
        raise ConversionError(
            f"torch.export cannot record the network with a dynamic {free}{_place(error)} ({reason})",
            REMEDY if dynamic_size else causes,
        ) from error
    if dynamic_size:
        with evaluating(module):
            require_any_size(recorded, module, module, first)
    _read_inputs(graph)
    return graph


_VIOLATED = "Constraints violated"
"""Prefix of torch.export's error when a dynamic dimension was specialised."""


def _exported(module: nn.Module, examples: tuple[Tensor, ...], shapes: ShapesCollection) -> ExportedProgram:
    """torch.export's program; if tracing specialises a free size, the program of its strict mode.

    Tracing has to give Python an integer for len(x) and int(x.shape[0]); strict mode, which reads bytecode, keeps the
    symbol.
    """
    try:
        return torch.export.export(module, examples, dynamic_shapes=shapes)
    except Exception as error:
        if not first_line(error).startswith(_VIOLATED):
            raise
        try:
            return torch.export.export(module, examples, dynamic_shapes=shapes, strict=True)
        except Exception:  # the first error has the user's line, where there is one
            raise error from None


def returned_by(module: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    """What the module returns for `examples`; raises where it does not take them: torch.export accepts wrong dtypes."""
    try:
        return _called(module, *examples)
    except SurgeonError:
        raise
    except Exception as error:
        if len(examples) == 1:
            _refuse_integers(module, examples[0])
        taken = " and ".join(
            f"shape {','.join(map(str, x.shape[1:]))}, {str(x.dtype).removeprefix('torch.')}" for x in examples
        )
        what = "an input of" if len(examples) == 1 else "inputs of"
        raise SurgeonError(
            f"the network does not take {what} {taken}{_place(error)} ({first_line(error)})",
            "Give the shape that it takes, without the batch, and a network of that dtype",
        ) from error


def _called(module: nn.Module, *examples: Tensor) -> Any:
    with evaluating(module), torch.no_grad():
        return module(*(example.clone() for example in examples))


def _refuse_integers(module: nn.Module, example: Tensor) -> None:
    """Raise ConversionError where the module takes integers in the place of `example`: tokens have no gradient."""
    readers: list[str] = []
    names = {part: name for name, part in source_modules(module).items()}

    def note(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and not inputs[0].is_floating_point():
            readers.append(f"{type(part).__name__} {names.get(part, '')}".rstrip())

    with contextlib.ExitStack() as hooks:
        for part in module.modules():
            if not list(part.children()):
                hooks.enter_context(part.register_forward_pre_hook(note))
        try:
            _called(module, torch.zeros(example.shape, dtype=torch.int64))
        except Exception:  # it does not take integers either, and the first error is more informative
            return
    reader = f" ({readers[0]} reads them)" if readers else ""
    raise ConversionError(
        f"the network takes integers, which have no gradient{reader}",
        "Convert the part behind that layer, as a module that takes its floating-point output",
    )


def _refuse(at: Sequence[str], dynamic_size: bool) -> None:
    """Raise SurgeonError for layers that cannot be slices of one output."""
    twice = next((name for name, count in collections.Counter(at).items() if count > 1), None)
    if twice is not None:
        raise SurgeonError(f"the layer {twice!r} is named twice", "Name each once")
    if dynamic_size and len(at) > 1:
        raise SurgeonError(
            f"the layers {' and '.join(at)} make no one output where height and width are free",
            f"{REMEDY}, or name one layer",
        )


def _detach_untracked(program: ExportedProgram) -> None:
    """Detach values that the network computes under torch.no_grad: decompositions dissolve that region."""
    for node in list(program.graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled or node.args[0]:
            continue
        for value in list(node.users):
            with program.graph.inserting_after(value):
                detached = program.graph.call_function(torch.ops.aten.detach.default, (value,))
            detached.meta = dict(value.meta)
            value.replace_all_uses_with(detached, lambda user, detached=detached: user is not detached)


@contextmanager
def _copying(module: nn.Module) -> Iterator[None]:
    """Inside the context `module` works on copies of its inputs, since it may overwrite them."""

    def copy(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)

    with module.register_forward_pre_hook(copy):
        yield


def _read_inputs(graph: GraphModule) -> None:
    """clone(x) = x for the inputs x of a functional graph, which overwrites nothing."""
    for placeholder in [node for node in graph.graph.nodes if node.op == "placeholder"]:
        for copied in [user for user in placeholder.users if user.target is torch.ops.aten.clone.default]:
            copied.replace_all_uses_with(placeholder)
            graph.graph.erase_node(copied)
    graph.recompile()


def _place(error: Exception) -> str:
    """Where in the user's code `error` was raised, as " at file:line"; "" where all frames are torch's or ours."""
    libraries = (str(Path(torch.__file__).parent), str(Path(surgeon.__file__).parent), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(libraries)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
