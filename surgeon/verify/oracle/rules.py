"""The pullback's rules by autograd, straight from the formulas: a torch function mode for the oracle.

Under it the author's own code runs, call by call; ReLU-type functions and max pooling are recorded by autograd with
another backward. Slow and obvious on purpose. Source of the formulas: arXiv 2507.22832.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgeon.bundle.manifest import Recipe
from surgeon.errors import SurgeonError
from surgeon.network.wrapping import source_name
from surgeon.verify.oracle.activations import (
    ACTIVATIONS,
    ACTIVATIONS_IN_PLACE,
    OVERWRITING,
    SPACES,
    Activation,
    calls,
    hidden,
    leave_note,
    merged,
    note_clamp,
)
from surgeon.verify.oracle.recurrent import relu_cell, relu_rnn

Rule = Callable[[Tensor, Tensor], Tensor]
"""(pre-activation, cotangent) -> cotangent of the pre-activation."""

Temperatures = float | Sequence[tuple[str, float]]
"""One T for all soft gates and pools; or (source module, T) of each that leads to the output, in the order of calls."""

GATED_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
"""What `gate_scope="modules"` goes by: calls from within one of these are gated, all others are ordinary."""


@dataclass
class GateCall:
    """A soft gate or pool, as it was called: its turn, the names of the innermost module, and its temperature."""

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
    """While active, ReLU-type calls and max pooling are recorded by autograd with their pullback as backward."""

    def __init__(self, recipe: Recipe, temperature: Temperatures) -> None:
        super().__init__()
        if recipe.temperatures and not isinstance(temperature, Sequence):
            raise SurgeonError("the recipe fixes temperatures of some gates", "Say the temperature of each gate")
        if recipe.gate not in ("soft", "hard", "guided", "deconvnet"):
            raise SurgeonError(f"no gate {recipe.gate!r}", "Choose soft, hard, guided or deconvnet")
        self.recipe = recipe
        self.temperature = temperature
        self._depth = 0 if recipe.gate_scope == "modules" else 1
        self._calls = 0
        self._running: list[frozenset[str]] = []

    @contextlib.contextmanager
    def within(self, module: nn.Module) -> Iterator[None]:
        """Activate, and watch which calls come from within the gated modules of `module`."""

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
        """Keep the names of the modules that run: a module may have several."""
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
        """Give the soft gates and pools that lead to `output` their temperatures, where each has its own.

        Raises SurgeonError where their number or their modules are not those that the temperatures are for.
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
        """Call an activation, in whatever words, under its gate; anything else as it is."""
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
        """activation(z), put in the place of `target` if there is one."""
        norm = type(z.grad_fn).__name__ == "LinalgVectorNormBackward0"
        if norm and activation.clamps and activation.lower is not None:
            return plain()  # the floor of a norm, which something is divided by, is no gate
        # The gate needs the value from before, and whoever reads z later must see the value from after.
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
        if self.recipe.gate == "soft":
            both = self.recipe.edges == "both"
            return Softened(self._call(), lambda z, g, t: soft_gate(activation, z, g, t, both=both), activation)
        if self.recipe.gate == "guided":
            return lambda z, g: guided_gate(activation, z, g)
        return lambda z, g: deconvnet_gate(activation, g)

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
            Softened(self._call(), lambda x, g, t: soft_pool_vjp(x, g, kernel, stride, padding, dilation, t)),
        )
        return (output, indices) if with_indices or return_indices else output

    def _adaptive_pool(
        self, call: Any, dimensions: int, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Any:
        sizes, wanted = input.shape[-dimensions:], _per_axis(output_size, dimensions)
        outs = [size if out is None else out for size, out in zip(sizes, wanted, strict=True)]
        pool = getattr(F, f"adaptive_max_pool{dimensions}d")
        rule = Softened(self._call(), lambda x, g, t: soft_cells_vjp(x, g, outs, t))
        values = self._apply(input, lambda x: pool(x, outs), rule)
        if call is pool and not return_indices:
            return values
        return values, pool(input.detach(), outs, return_indices=True)[1]


def _is_of_an_abs(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is relu(abs(x)), which is the identity, and no gate."""
    z = args[0] if args else kwargs.get("input")
    return call in RELUS and isinstance(z, Tensor) and type(z.grad_fn).__name__ == "AbsBackward0"


@dataclass(frozen=True)
class Softened:
    """A rule that reads the temperature of its call, when autograd comes back to it."""

    call: GateCall
    rule: Callable[[Tensor, Tensor, float], Tensor]
    activation: Activation | None = None  # None: a pool

    def __call__(self, z: Tensor, g: Tensor) -> Tensor:
        assert self.call.temperature is not None
        return self.rule(z, g, self.call.temperature)


def rules_behind(output: Tensor) -> list[Softened]:
    """The rules of the soft gates and pools through which autograd comes from `output`, in the order of calls."""
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


def soft_gate(activation: Activation, z: Tensor, g: Tensor, temperature: float, *, both: bool) -> Tensor:
    """(s + (1 - s) sigmoid((z - lower) / T)) g; with `both`, or no lower edge, times sigmoid((upper - z) / T)."""
    opening = torch.ones_like(z)
    if activation.lower is not None:
        opening = opening * torch.sigmoid((z - activation.lower) / temperature)
    if activation.upper is not None and (both or activation.lower is None):
        opening = opening * torch.sigmoid((activation.upper - z) / temperature)
    return activation.slope * g + (1 - activation.slope) * opening * g


def guided_gate(activation: Activation, z: Tensor, g: Tensor) -> Tensor:
    """Give s g + (1 - s) 1[open] 1[g > 0] g, where what is open is autograd's business."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        (ordinary,) = torch.autograd.grad(activation.plain(leaf), leaf, g)
    shut = activation.slope * g
    return shut + (ordinary - shut) * (g > 0)


def deconvnet_gate(activation: Activation, g: Tensor) -> Tensor:
    """Give s g + (1 - s) 1[g > 0] g, open or shut."""
    return activation.slope * g + (1 - activation.slope) * g * (g > 0)


def soft_pool(
    x: Tensor,
    output_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    temperature: float,
) -> Tensor:
    """Softmax-weighted pooling of the last axes: p = sum_j w_j x_j, w = softmax(x / T) over each window.

    Padded positions take part as 0, as in the reference; positions beyond them, which only ceil mode reaches, do not.
    """
    axes = range(x.dim() - len(kernel), x.dim())
    windows, taking_part = x, torch.ones_like(x, dtype=torch.bool)
    for axis, p in zip(axes, padding, strict=True):
        windows, taking_part = _extend(windows, axis, p, p, 0), _extend(taking_part, axis, p, p, True)
    for axis, size, k, s, d in zip(axes, output_size, kernel, stride, dilation, strict=True):
        beyond = max((size - 1) * s + (k - 1) * d + 1 - windows.shape[axis], 0)
        windows, taking_part = _extend(windows, axis, 0, beyond, 0), _extend(taking_part, axis, 0, beyond, False)
    for axis, size, k, s, d in zip(axes, output_size, kernel, stride, dilation, strict=True):
        places = torch.arange(size, device=x.device)[:, None] * s + torch.arange(k, device=x.device) * d
        # The window's own axis goes last, so the axes still to be cut keep their numbers.
        windows = windows.index_select(axis, places.flatten()).unflatten(axis, (size, k)).movedim(axis + 1, -1)
        taking_part = taking_part.index_select(axis, places.flatten()).unflatten(axis, (size, k)).movedim(axis + 1, -1)
    values = windows.flatten(-len(kernel))
    takes_part = taking_part.flatten(-len(kernel)) & (values != float("-inf"))  # as some pad before they pool
    values = values.masked_fill(~takes_part, 0)
    weights = (values / temperature).masked_fill(~takes_part, float("-inf")).softmax(-1)
    return (weights * values).sum(-1)


def soft_pool_vjp(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    temperature: float,
) -> Tensor:
    """g_{x_j} = w_j (1 + (x_j - p) / T) g, summed over the windows that hold j: autograd of `soft_pool`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        pooled = soft_pool(leaf, tuple(g.shape[-len(kernel) :]), kernel, stride, padding, dilation, temperature)
        (gradient,) = torch.autograd.grad(pooled, leaf, g)
    return gradient


def soft_cells_vjp(x: Tensor, g: Tensor, outs: Sequence[int], temperature: float) -> Tensor:
    """The same for adaptive pooling to `outs`, where cell o of O holds what is from o H / O to (o + 1) H / O."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        pooled = []
        for cell in itertools.product(*map(range, outs)):
            window = leaf
            for axis, (o, out) in enumerate(zip(cell, outs, strict=True), x.dim() - len(outs)):
                start, end = o * x.shape[axis] // out, -(-(o + 1) * x.shape[axis] // out)
                window = window.narrow(axis, start, end - start)
            values = window.flatten(-len(outs))
            pooled.append(((values / temperature).softmax(-1) * values).sum(-1))
        (gradient,) = torch.autograd.grad(torch.stack(pooled, -1).unflatten(-1, outs), leaf, g)
    return gradient


def _extend(x: Tensor, axis: int, before: int, after: int, value: float | bool) -> Tensor:
    def block(length: int) -> Tensor:
        return x.new_full((*x.shape[:axis], length, *x.shape[axis + 1 :]), value)

    return torch.cat([block(before), x, block(after)], axis)


def _per_axis(value: Any, dimensions: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dimensions if len(values) == 1 else values
