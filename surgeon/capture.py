"""From any nn.Module to a functional ATen graph with a dynamic batch.

`torch.export` records the forward pass; decompositions make it functional (an in-place ReLU would otherwise overwrite
the pre-activation that its gate reads) and small, except for the operators in `surgeon.rules.KEPT`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from surgeon.decompositions import DECOMPOSITIONS
from surgeon.errors import ConversionError, SurgeonError
from surgeon.rules import KEPT

GATE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
"""What the gate scope "modules" goes by, subclasses included: calls from within one of these are gated."""


@dataclass(frozen=True)
class Captured:
    """A network as a graph: `graph` takes one tensor and returns one tensor.

    Its nodes call ATen overloads or read parameters (get_attr); `meta["val"]` of each holds its fake value.
    """

    graph: GraphModule
    gate_classes: frozenset[str] = frozenset()  # those of GATE_MODULES in the network, and subclasses of them

    @property
    def input(self) -> Node:
        """The placeholder."""
        return next(node for node in self.graph.graph.nodes if node.op == "placeholder")

    @property
    def output(self) -> Node:
        """The node whose value is returned; looked up, since passes over the graph may put another one in its place."""
        (returned,) = _returned(self.graph)
        assert isinstance(returned, Node)
        return returned


def capture(module: nn.Module, example: Tensor) -> Captured:
    """Capture `module`, in evaluation mode, as called on `example`: [N >= 2, …], floating point; N stays dynamic.

    Raises ConversionError where torch.export cannot record the module, or where it does not map one tensor to one.
    """
    if example.shape[0] < 2:
        raise ValueError("capture needs an example batch of at least 2: torch.export fixes sizes 0 and 1")
    _refuse_input(module, example)
    try:
        with _evaluating(module), _silent_torch():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
            _detach_untracked(program)
            table = torch.export.default_decompositions()
            table.update(DECOMPOSITIONS)
            for operator in KEPT:
                table.pop(operator, None)
            graph = program.run_decompositions(table).module(check_guards=False)
    except Exception as error:
        raise ConversionError(
            f"torch.export cannot record the network with a dynamic batch{_place(error)} ({_first_line(error)})",
            "Data-dependent control flow and a fixed batch are the usual causes",
        ) from error
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    outputs = _returned(graph)
    if len(inputs) != 1 or len(outputs) != 1 or not isinstance(outputs[0], Node):
        raise ConversionError(
            f"{type(module).__name__} takes {len(inputs)} inputs and returns {len(outputs)} values",
            "Wrap it in a module that takes one tensor and returns one tensor",
        )
    graph.graph.eliminate_dead_code()
    classes = {type(part) for part in module.modules() if isinstance(part, GATE_MODULES)}
    return Captured(graph, frozenset(map(_qualified, classes)))


def _refuse_input(module: nn.Module, example: Tensor) -> None:
    """Raise SurgeonError where the module does not take `example`: torch.export lets a wrong dtype pass."""
    try:
        with _evaluating(module), torch.no_grad():
            module(example.clone())
    except Exception as error:
        shape, dtype = ",".join(map(str, example.shape[1:])), str(example.dtype).removeprefix("torch.")
        raise SurgeonError(
            f"the network does not take an input of shape {shape}, {dtype}{_place(error)} ({_first_line(error)})",
            "Give the shape that it takes, without the batch, and a network of that dtype",
        ) from error


def _returned(graph: GraphModule) -> list[object]:
    outputs = graph.graph.output_node().args[0]
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def _detach_untracked(program: ExportedProgram) -> None:
    """Detach what the network computes under torch.no_grad: decompositions dissolve that region."""
    for node in list(program.graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled or node.args[0]:
            continue
        for value in list(node.users):
            with program.graph.inserting_after(value):
                detached = program.graph.call_function(torch.ops.aten.detach.default, (value,))
            detached.meta = dict(value.meta)
            value.replace_all_uses_with(detached, lambda user, own=detached: user is not own)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; afterwards each submodule has its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _silent_torch() -> Iterator[None]:
    """Keep torch.export's log and the graphs that it prints on failure off the screen: its exception says it all."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _place(error: Exception) -> str:
    """Where in the user's code `error` came up, as " at file:line"; nothing where only torch's own code is known."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((*own, "<"))
    ]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def source_module(node: Node) -> str:
    """Dotted name of the innermost module that `node` comes from; "" for the root."""
    stack = node.meta.get("nn_module_stack")
    name = list(stack.values())[-1][0] if stack else ""
    return str(name).partition("@")[0]  # a module that is called again has @1, @2, … behind its name


def source_classes(node: Node) -> list[str]:
    """Class names of the modules that `node` comes from, innermost last, such as torch.nn.modules.activation.ReLU."""
    stack = node.meta.get("nn_module_stack") or {}
    return [kind if isinstance(kind, str) else _qualified(kind) for _, kind in stack.values()]


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def source_line(node: Node) -> str:
    """The line of the user's code that `node` comes from, such as "resnet.py:161"; "" where it is not known."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    own = [line for line in lines if "/torch/nn/" not in line] or lines
    if not own:
        return ""
    path, _, rest = own[-1].removeprefix('File "').partition('", line ')
    return f"{path.replace(chr(92), '/').rpartition('/')[2]}:{rest.partition(',')[0]}"
