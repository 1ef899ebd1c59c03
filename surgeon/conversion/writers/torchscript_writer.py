"""The TorchScript twins: `pullback.ts` and `ascent.ts`, which a process with torch alone can load.

The fx graph is compiled from its own source, not traced, so that the batch stays dynamic.
"""

from __future__ import annotations

import copy
import io
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule

from surgeon.conversion.writers.ascent import AscentStep, Objective
from surgeon.conversion.writers.plan import Plan
from surgeon.errors import ConversionError, first_line

TORCHSCRIPT_EQUIVALENTS: dict[Any, Callable[..., Any]] = {
    math.trunc: int,
    operator.abs: abs,
    torch.sym_float: float,
    torch.sym_int: int,
    torch.sym_max: max,
    torch.sym_min: min,
    torch.sym_not: operator.not_,
    torch.sym_sum: sum,
}
"""TorchScript's equivalents of the arithmetic on sizes that torch.export records."""


def write_torchscript(graph: GraphModule, folder: Path, plan: Plan) -> None:
    """Write pullback.ts and ascent.ts into `folder`; `graph` comes from `explicit_graph`.

    Scalars have the defaults of `plan.input_defaults`; a scalar fills a temperature that has an entry for each gate.
    """
    recipe, defaults, extra_inputs = plan.recipe, plan.input_defaults, plan.extra_inputs
    uses_temperature = any(node.op == "placeholder" and node.target == "temperature" for node in graph.graph.nodes)
    temperature = [("temperature", defaults["temperature"])] if uses_temperature else []
    scalars = [*temperature, *((name, defaults[name]) for name in ("step_size", "radius", "steps"))]
    objective, step = Objective(recipe.objective), AscentStep(recipe.step, recipe.norm, *plan.value_range)
    with _without_deprecations():
        pullback = _script(_scriptable(graph, extra_inputs))
        _save(pullback, ["input", *extra_inputs, "cotangent"], extra_inputs, temperature, 2, folder / "pullback.ts")
        loop = _Ascent(_script(_scriptable(graph, extra_inputs, objective)), objective, step, uses_temperature)
        inputs = ["input", *extra_inputs] if recipe.objective == "energy" else ["input", *extra_inputs, "cotangent"]
        _save(torch.jit.script(loop), inputs, extra_inputs, scalars, 4, folder / "ascent.ts")


class _Ascent(nn.Module):
    """The loop around a graph (input, cotangent[, temperature], others) -> (output, pullback, score)."""

    __constants__ = ("uses_temperature",)

    def __init__(self, graph: nn.Module, objective: Objective, step: AscentStep, uses_temperature: bool) -> None:
        super().__init__()
        self.graph, self.objective, self.step, self.uses_temperature = graph, objective, step, uses_temperature

    def climb(
        self, x: Tensor, cotangent: Tensor, temperature: Tensor, extra_inputs: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.uses_temperature:
            return self.graph(x, cotangent, temperature, extra_inputs)
        return self.graph(x, cotangent, extra_inputs)

    def forward(
        self,
        input: Tensor,
        cotangent: Tensor,
        temperature: Tensor,
        step_size: Tensor,
        radius: Tensor,
        steps: Tensor,
        extra_inputs: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, pullback = input, torch.zeros_like(input)
        scores: list[Tensor] = []
        for _ in range(int(steps)):
            _, pullback, score = self.climb(x, cotangent, temperature, extra_inputs)
            scores.append(score)
            x = self.step(x, input, pullback, step_size, radius)
        # The last image's pullback is computed with its output, and dropped: TorchScript has one graph for both.
        output, _, score = self.climb(x, cotangent, temperature, extra_inputs)
        scores.append(score)
        return x, output, pullback, torch.stack(scores)


def _save(
    inner: torch.jit.ScriptModule,
    tensors: list[str],
    extra_inputs: Sequence[str],
    scalars: list[tuple[str, Any]],
    outputs: int,
    path: Path,
) -> None:
    """Save `inner` behind a forward with defaults for the scalars and without the inputs that `inner` does not read.

    `inner` takes the `extra_inputs` among `tensors` as one list.
    """
    holder = nn.Module()
    holder.inner = inner
    script = torch.jit.script(holder)
    values = dict(scalars)
    parameters = [f"{name}: Tensor" for name in tensors] + [f"{name}: Optional[Tensor] = None" for name in values]
    lines = [f"def forward(self, {', '.join(parameters)}) -> Tuple[{', '.join(['Tensor'] * outputs)}]:"]
    for name, value in values.items():
        text = f"float('{value}')" if value in (float("inf"), float("-inf")) else repr(value)
        text = repr(list(value)) if isinstance(value, tuple) else text
        lines.append(f"    {_own(name)} = {name} if {name} is not None else torch.tensor({text}, device=input.device)")
        if isinstance(value, tuple):
            lines.append(f"    {_own(name)} = {_own(name)}.expand({len(value)})")
    # The loop does not read the arguments that the artifact lacks: any tensor will do.
    wanted = [port.name for port in inner._c._get_method("forward").schema.arguments][1:]
    arguments = {
        **dict.fromkeys(wanted, "input"),
        **{name: name for name in tensors},
        **{name: _own(name) for name in values},
    }
    listed = f"[{', '.join(extra_inputs)}]" if extra_inputs else "torch.jit.annotate(List[Tensor], [])"
    arguments["extra_inputs"] = listed
    lines.append(f"    return self.inner({', '.join(arguments[name] for name in wanted)})")
    script.define("\n".join([*lines, ""]))
    # Through memory: where the disk is full, torch's own file writer ends the process.
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    path.write_bytes(buffer.getbuffer())


def _own(name: str) -> str:
    """The local name of the scalar `name` with its default filled in; no input of a network has such a name."""
    return f"{name}_or_default"


def _scriptable(graph: GraphModule, extra_inputs: Sequence[str], objective: Objective | None = None) -> GraphModule:
    """`graph` in a form that TorchScript compiles; an objective is put between output and cotangent.

    TorchScript calls ATen's operators by packet, not by overload, and sizes by method, and it cannot load weights whose
    names are not in ASCII. The last inputs, `extra_inputs`, become one list.
    """
    copied = GraphModule(*_with_ascii_names(graph), "Pullback")
    nodes = copied.graph
    placeholders = [node for node in nodes.nodes if node.op == "placeholder"]
    with nodes.inserting_after(placeholders[-1]):
        listed = nodes.placeholder("extra_inputs", list[Tensor])
    for i, node in enumerate(placeholders[len(placeholders) - len(extra_inputs) :]):
        with nodes.inserting_after(listed):
            node.replace_all_uses_with(nodes.call_function(operator.getitem, (listed, i)))
        nodes.erase_node(node)
    for node in nodes.nodes:
        if node.target is torch.ops.aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif isinstance(node.target, OpOverload):
            node.target = node.target.overloadpacket
        elif node.op == "call_function":
            node.target = TORCHSCRIPT_EQUIVALENTS.get(node.target, node.target)
    if objective is not None:
        copied.add_submodule("objective", objective)
        _climb(nodes)
    copied.recompile()
    return copied


def _climb(nodes: Graph) -> None:
    """Put the module "objective" between output and cotangent, and return its score too."""
    result = nodes.output_node()
    outputs: Any = result.args[0]
    output, pullback = outputs
    cotangent = next(node for node in nodes.nodes if node.op == "placeholder" and node.target == "cotangent")
    readers = list(cotangent.users)
    with nodes.inserting_after(output):
        both = nodes.call_module("objective", (output, cotangent))
    with nodes.inserting_after(both):
        climbed = nodes.call_function(operator.getitem, (both, 1))
        score = nodes.call_function(operator.getitem, (both, 0))
    for reader in readers:
        reader.replace_input_with(cotangent, climbed)
    result.args = ((output, pullback, score),)


def _with_ascii_names(graph: GraphModule) -> tuple[dict[str, Any], Graph]:
    """The values that `graph` reads, by name, and a copy of its nodes; names that are not in ASCII become numbers."""
    nodes = copy.deepcopy(graph.graph)
    values: dict[str, Any] = {}
    for node in nodes.find_nodes(op="get_attr"):
        value = operator.attrgetter(str(node.target))(graph)
        if not str(node.target).isascii():
            node.target = f"weight_{len(values)}"
        values[str(node.target)] = value
    return values, nodes


def _script(graph: GraphModule) -> torch.jit.ScriptModule:
    """`graph`, compiled; raises ConversionError for an operator that TorchScript does not have."""
    try:
        return torch.jit.script(graph)
    except RuntimeError as error:
        reason = first_line(error)
        raise ConversionError(f"TorchScript cannot compile the graph ({reason})", "Give --formats onnx") from error


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Silence the warnings that TorchScript is deprecated, which every call gives; nothing else is silenced."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*torch\.jit\..* is (deprecated|not supported)", category=FutureWarning
        )
        warnings.filterwarnings(
            "ignore", message=r".*torch\.jit\..* is (deprecated|not supported)", category=DeprecationWarning
        )
        warnings.filterwarnings(
            "ignore", message="The TorchScript type system doesn't support instance-level annotations"
        )
        yield
