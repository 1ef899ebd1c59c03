"""Checkpoints, compiled functions and custom autograd Functions: seen through, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import CapturedNetwork, rewrite
from surgeon.errors import ConversionError, SurgeonError
from surgeon.verify.oracle.reference import reference_pullback
from surgeon.verify.verify import relative_error
from tests.pullbacks import captured


class Around(nn.Module):
    """`function` between two layers: [N, 3, 6, 6] -> [N, 3]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.function(self.conv(x)) + F.relu(self.conv(x) - 0.2)).mean((2, 3)))


class HandwrittenRelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class Swish(Function):
    """As networks that save memory write it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * s * (1 + x * (1 - s))


class Both(Function):
    """Two inputs, two outputs, and its context apart."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x) * y, x + y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return g * (x > 0) * y + h, g * x.relu() + h


class StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Clipped(StraightThrough):
    """Its derivative differs where the values at hand are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-4, 4)


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * g, None


class Overwriting(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class NoBackward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise NotImplementedError("for use without gradients")


def scripted(x: Tensor) -> Tensor:
    return torch.relu(x - 0.1) * x


held = HandwrittenRelu.apply
compiled = torch.jit.script(scripted)

GATES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "checkpoint, reentrant": (lambda h: checkpoint(scripted, h, use_reentrant=True), 2),
    "checkpoint": (lambda h: checkpoint(scripted, h, use_reentrant=False), 2),
    "compiled": (lambda h: compiled(h), 2),
    "a Function": (HandwrittenRelu.apply, 2),
    "a Function under another name": (lambda h: held(h), 2),
    "a Function of two": (lambda h: sum(Both.apply(h, h * 2)), 2),
    "a smooth Function": (Swish.apply, 1),
    "L2 pooling": (lambda h: F.lp_pool2d(h, 2, 2).mean((2, 3), keepdim=True), 1),
    "L3 pooling": (lambda h: nn.LPPool1d(3, 2)(F.relu(h).flatten(2)).mean(2)[..., None, None], 2),
    "the ReLU of an abs": (lambda h: F.relu(h.abs()), 1),
    "the same in place": (lambda h: h.abs().relu_(), 1),
    "a clamp of an abs": (lambda h: h.abs().clamp(min=0), 2),
}


def built(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Around(function).double().eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)


class Beside(nn.Module):
    """All functions side by side, each between layers of its own: [N, 3, 6, 6] -> [N, 3 for each]."""

    def __init__(self, functions: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Around(function) for function in functions)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


@pytest.fixture(scope="module")
def beside() -> tuple[nn.Module, Tensor, CapturedNetwork]:
    torch.manual_seed(0)
    module, x = Beside([function for function, _ in GATES.values()]).double().eval(), torch.randn(3, 3, 6, 6).double()
    return module, x, captured(module, x)


@pytest.mark.parametrize(
    "recipe", [Recipe(temperature_input="per-gate"), Recipe(gate="guided")], ids=["soft", "guided"]
)
@pytest.mark.parametrize("name", GATES)
def test_gates_behind_other_calls_are_seen_by_both(beside, name: str, recipe: Recipe) -> None:
    module, x, network = beside
    place, pullback = list(GATES).index(name), PullbackModule(network.captured, recipe)
    assert [gate.module == f"parts.{place}" for gate in pullback.gates].count(True) == GATES[name][1]
    g = torch.zeros(3, 3 * len(GATES), dtype=torch.float64)
    g[:, 3 * place : 3 * place + 3] = torch.randn(3, 3, dtype=torch.float64)
    temperatures = torch.linspace(0.4, 0.9, len(pullback.gates), dtype=torch.float64)
    each = [(gate.module, t) for gate, t in zip(pullback.gates, temperatures.tolist(), strict=True)]
    soft = recipe.gate == "soft"
    output, expected = reference_pullback(module, x, g, recipe=recipe, temperature=each if soft else 1.0)
    found, pulled = pullback(x, g, *([temperatures] if soft else []))
    assert torch.equal(output, module(x)) and torch.allclose(found, output)
    assert relative_error(pulled, expected) < 1e-12


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "straight through": (StraightThrough.apply, "backward of the autograd Function StraightThrough is not the deriv"),
    "clipped": (Clipped.apply, "Clipped is not the derivative of its forward. Write its forward in plain operations"),
    "reversal": (lambda h: Reversed.apply(h, 1.0), "Reversed is not the derivative"),
    "in place": (lambda h: Overwriting.apply(h * 1), "Overwriting overwrites its input"),
    "no backward": (NoBackward.apply, r"NoBackward cannot be compared with its derivative \(for use without gradients"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_with_a_backward_of_their_own_are_refused(name: str) -> None:
    function, words = REFUSED[name]
    module, x = built(function)
    with pytest.raises(ConversionError, match=words):
        rewrite(module, x)


def test_a_compiled_function_without_an_original() -> None:
    function = torch.jit.script(scripted)
    del function._torchdynamo_inline
    module, x = built(lambda h: function(h))
    with pytest.raises(SurgeonError, match=r"compiled function scripted holds gates \(relu\)"):
        reference_pullback(module, x, torch.ones(3, 3), recipe=Recipe(), temperature=1.0)


def test_everything_is_as_it_was() -> None:
    before = dict(vars(HandwrittenRelu)), dict(vars(Both)), torch.jit.ScriptFunction.__call__
    module, x = built(lambda h: held(h) + compiled(h) + checkpoint(scripted, h, use_reentrant=False))
    reference_pullback(module, x, torch.ones(3, 3, dtype=x.dtype), recipe=Recipe(), temperature=1.0)
    rewrite(module, x)
    assert before == (dict(vars(HandwrittenRelu)), dict(vars(Both)), torch.jit.ScriptFunction.__call__)


def test_a_custom_operator_is_refused_by_its_own_name() -> None:
    @torch.library.custom_op("surgeon_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    twice.register_autograd(lambda ctx, g: g * 2, setup_context=lambda ctx, inputs, output: None)
    module, x = built(twice)
    with pytest.raises(ConversionError, match=r"no pullback rule for surgeon_tests\.twice"):
        rewrite(module, x)
