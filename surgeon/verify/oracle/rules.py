"""The oracle's torch function mode: it runs the author's own code, call by call, under the recipe's gates.

Autograd records ReLU-type functions and max pooling with another backward, the formulas of
`surgeon.verify.oracle.formulas`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.gates import gate
from surgeon.errors import SurgeonError
from surgeon.network.wrapping import source_name
from surgeon.verify.oracle import formulas
from surgeon.verify.oracle.activations import ACTIVATIONS, ACTIVATIONS_IN_PLACE, SPACES, Activation, calls
from surgeon.verify.oracle.gate_patterns import OVERWRITING, hidden, leave_note, merged, note_clamp
from surgeon.verify.oracle.recurrent import relu_cell, relu_rnn

Rule = Callable[[Tensor, Tensor], Tensor]
"""(pre-activation, cotangent) -> cotangent of the pre-activation."""

Temperatures = float | Sequence[tuple[str, float]]
"""One T for all soft gates and pools; or (source module, T) of each on the path to the output, in order of calls."""

GATED_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
"""With `gate_scope="modules"`, calls from within one of these are gated, and all others are ordinary."""


@dataclass
class GateCall:
    """One call of a soft gate or pool: its turn, the names of the innermost module, and its temperature."""

    turn: int
    modules: frozenset[str]
    temperature: float | None  # None until all calls are known


POOLS = {
    call: dimensions
    for dimensions in (1, 2, 3)
    for name in (f"max_pool{dimensions}d", f"max_pool{dimensions}d_with_indices", f"_max_pool{dimensions}d")
    for call in calls(SPACES, name)
}
ADAPTIVE_POOLS = {
    call: dimensions
    for dimensions in (1, 2, 3)
    for name in (f"adaptive_max_pool{dimensions}d", f"adaptive_max_pool{dimensions}d_with_indices")
    for call in calls(SPACES, name)
}


RELUS = frozenset(calls(SPACES, "relu", "relu_"))
RECURRENT: dict[Any, Callable[..., Any]] = {torch.rnn_relu: relu_rnn, torch.rnn_relu_cell: relu_cell}


class PullbackMode(TorchFunctionMode):
    """While active, autograd records ReLU-type calls and max pooling with their pullback as backward."""

    def __init__(self, recipe: Recipe, temperature: Temperatures) -> None:
        super().__init__()
        if recipe.temperatures and not isinstance(temperature, Sequence):
            raise SurgeonError("the recipe fixes temperatures of some gates", "Say the temperature of each gate")
        gate(recipe.gate)  # which refuses a policy that this process does not know
        self.recipe = recipe
        self.temperature = temperature
        self._depth = 0 if recipe.gate_scope == "modules" else 1
        self._calls = 0
        self._running: list[frozenset[str]] = []

    @contextlib.contextmanager
    def within(self, module: nn.Module) -> Iterator[None]:
        """Activate, and track which calls come from within the gated modules of `module`."""

        def enter(*_: Any) -> None:
            self._depth += 1

        def leave(*_: Any) -> None:
            self._depth -= 1

        with contextlib.ExitStack() as hooks:
            for layer in module.modules():
                if isinstance(layer, GATED_MODULES):
                    hooks.enter_context(layer.register_forward_pre_hook(enter))
                    hooks.enter_context(layer.register_forward_hook(leave))
            if isinstance(self.temperature, Sequence):
                self._watch(module, hooks)
            with self:
                yield

    def _watch(self, module: nn.Module, hooks: contextlib.ExitStack) -> None:
        """Track the names of the running modules; a module may have several names."""
        names: dict[nn.Module, set[str]] = {}
        for name, layer in module.named_modules(remove_duplicate=False):
            names.setdefault(layer, set()).add(source_name(name))

        def enter(layer: nn.Module, _: Any) -> None:
            self._running.append(frozenset(names[layer]))

        def leave(*_: Any) -> None:
            self._running.pop()

        for layer in names:
            hooks.enter_context(layer.register_forward_pre_hook(enter))
            hooks.enter_context(layer.register_forward_hook(leave))

    def _call(self) -> GateCall:
        self._calls += 1
        shared = None if isinstance(self.temperature, Sequence) else self.temperature
        return GateCall(self._calls, self._running[-1] if self._running else frozenset({""}), shared)

    def assign(self, output: Tensor) -> None:
        """Assign temperatures to the soft gates and pools on the path to `output`, where each has its own.

        Raises SurgeonError where their number or their modules do not fit the temperatures.
        """
        if not isinstance(self.temperature, Sequence):
            return
        calls = [rule.call for rule in rules_behind(output)]
        if len(calls) != len(self.temperature):
            raise SurgeonError(
                f"the network runs {len(calls)} soft gates and pools, and {len(self.temperature)} have temperatures",
                "Export the bundle again from this network",
            )
        for call, (module, temperature) in zip(calls, self.temperature, strict=True):
            if module not in call.modules:
                raise SurgeonError(
                    f"soft gate or pool {call.turn} runs in {min(call.modules)!r}, its temperature is for {module!r}",
                    "Export the bundle again from this network",
                )
            call.temperature = temperature

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._depth:
            if call in POOLS and self.recipe.pool == "soft":
                return self._pool(POOLS[call], *args, **kwargs, with_indices="with_indices" in call.__name__)
            if call in ADAPTIVE_POOLS and self.recipe.pool == "soft":
                return self._adaptive_pool(call, ADAPTIVE_POOLS[call], *args, **kwargs)
            if self.recipe.gate != "hard":
                if call in RECURRENT:
                    return RECURRENT[call](self._relu, *args, **kwargs)
                if not _is_of_an_abs(call, args, kwargs):
                    return self._activate(call, args, kwargs)
        return call(*args, **kwargs)

    def _relu(self, z: Tensor) -> Tensor:
        gated: Tensor = self._activate(torch.relu, (z,), {})
        return gated

    def _activate(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an activation, or a pattern equivalent to one, under its gate; any other call as it is."""
        plain = functools.partial(call, *args, **kwargs)
        if call in ACTIVATIONS or call in ACTIVATIONS_IN_PLACE:
            if "input" in kwargs:
                args = (kwargs.pop("input"), *args)
            z, in_place = args[0], call in ACTIVATIONS_IN_PLACE or kwargs.pop("inplace", False)
            if not z.is_floating_point():
                return plain()
            reader = ACTIVATIONS_IN_PLACE[call] if call in ACTIVATIONS_IN_PLACE else ACTIVATIONS[call]
            return self._gated(*merged(z, reader(*args, **kwargs)), plain, z if in_place else None)
        found = hidden(call, args, kwargs)
        if found is None:
            result = plain()
            leave_note(call, args, kwargs, result)
            return result
        return self._gated(*found, plain, args[0] if call in OVERWRITING else None)

    def _gated(self, z: Tensor, activation: Activation, plain: Callable[[], Any], target: Tensor | None) -> Any:
        """activation(z), written into `target` if there is one."""
        norm = type(z.grad_fn).__name__ == "LinalgVectorNormBackward0"
        if norm and activation.clamps and activation.lower is not None:
            return plain()  # the floor of a norm that divides is no gate
        # The gate needs the value before the call; a later reader of z must see the value after it.
        before = z if target is None else z.clone()
        result = self._apply(before, activation.plain, self._gate(activation))
        if target is not None:
            result = target.copy_(result)
        note_clamp(result, before, activation)
        return result

    def _apply(self, z: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
        """plain(z), with `rule` for its backward."""
        result: Tensor = Gated.apply(z, plain, rule)
        return result

    def _gate(self, activation: Activation) -> Rule:
        policy, both = self.recipe.gate, self.recipe.edges == "both"
        if gate(policy).uses_temperature:
            return Softened(
                self._call(), lambda z, g, t: formulas.pass_gate(policy, activation, z, g, t, both), activation
            )
        return lambda z, g: formulas.pass_gate(policy, activation, z, g, 1.0, both)

    def _pool(
        self,
        dimensions: int,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        with_indices: bool,
    ) -> Any:
        kernel, padding, dilation = (_per_axis(value, dimensions) for value in (kernel_size, padding, dilation))
        # The functional form takes no stride as None, the ATen form as [].
        stride = kernel if stride is None or stride in ((), []) else _per_axis(stride, dimensions)
        pool = getattr(F, f"max_pool{dimensions}d_with_indices")
        _, indices = pool(input.detach(), kernel, stride, padding, dilation, ceil_mode)
        output = self._apply(
            input,
            lambda x: pool(x, kernel, stride, padding, dilation, ceil_mode)[0],
            Softened(self._call(), lambda x, g, t: formulas.soft_pool_vjp(x, g, kernel, stride, padding, dilation, t)),
        )
        return (output, indices) if with_indices or return_indices else output

    def _adaptive_pool(
        self, call: Any, dimensions: int, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Any:
        sizes, wanted = input.shape[-dimensions:], _per_axis(output_size, dimensions)
        outs = [size if out is None else out for size, out in zip(sizes, wanted, strict=True)]
        pool = getattr(F, f"adaptive_max_pool{dimensions}d")
        rule = Softened(self._call(), lambda x, g, t: formulas.soft_cells_vjp(x, g, outs, t))
        values = self._apply(input, lambda x: pool(x, outs), rule)
        if call is pool and not return_indices:
            return values
        return values, pool(input.detach(), outs, return_indices=True)[1]


def _is_of_an_abs(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call is relu(abs(x)), which is the identity and no gate."""
    z = args[0] if args else kwargs.get("input")
    return call in RELUS and isinstance(z, Tensor) and type(z.grad_fn).__name__ == "AbsBackward0"


@dataclass(frozen=True)
class Softened:
    """A rule that reads the temperature of its call during the backward pass."""

    call: GateCall
    rule: Callable[[Tensor, Tensor, float], Tensor]
    activation: Activation | None = None  # None: a pool

    def __call__(self, z: Tensor, g: Tensor) -> Tensor:
        assert self.call.temperature is not None
        return self.rule(z, g, self.call.temperature)


def rules_behind(output: Tensor) -> list[Softened]:
    """The rules of the soft gates and pools in the autograd graph of `output`, in the order of calls."""
    pending, seen = [output.grad_fn], set()
    found = []
    while pending:
        step = pending.pop()
        if step is not None and step not in seen:
            seen.add(step)
            rule = getattr(step, "rule", None)
            if isinstance(rule, Softened):
                found.append(rule)
            pending += [before for before, _ in step.next_functions]
            pending += [output.grad_fn for output in getattr(step, "plain_outputs", ())]
    return sorted(found, key=lambda rule: rule.call.turn)


class Gated(torch.autograd.Function):
    """plain(z) forward, rule(z, g) backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
        ctx.save_for_backward(z.clone())  # the network may overwrite z later on
        ctx.rule = rule
        return plain(z)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return ctx.rule(z, cotangents[0]), None, None


def _per_axis(value: Any, dimensions: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dimensions if len(values) == 1 else values
