"""The eager baseline: the same pullback by autograd on the author's own module, as fast as plain PyTorch computes it.

As in the method's reference code, a custom autograd function replaces each ReLU, and max pooling has a backward over
unfolded windows. The oracle is slow in order to be obvious; this is not: ReLUs in place become ReLUs out of place
without a copy, and the pool's derivative is written out. Compare its values before you time it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.verify.oracle import reference as oracle
from surgeon.verify.oracle import rules as oracle_rules
from surgeon.verify.oracle.formulas import FORMULAS, guided_gate, pass_gate

Network = Callable[[Tensor], Tensor]
"""Input [N, …] -> output [N, …], recorded by autograd with the pullback as its backward."""

_ACTIVATIONS = oracle_rules.ACTIVATIONS | oracle_rules.ACTIVATIONS_IN_PLACE
_INDEXED = frozenset(call for call in oracle_rules.POOLS if "with_indices" in call.__name__)


def network(module: nn.Module, recipe: Recipe, temperature: float, *, in_place: bool = False) -> Network:
    """`module` up to the recipe's layer, with the recipe's gates: call it, then autograd gives the pullback.

    Without `in_place`, operators in place run out of place, which is faster, and wrong for the few networks that read
    the overwritten tensor again.
    """
    gates = Gates(recipe, temperature, in_place)
    # Hooks on modules cut torch.compile's graph in pieces: only where the scope needs them.
    watching = recipe.gate_scope == "modules"

    def forward(input: Tensor) -> Tensor:
        with gates.within(module) if watching else gates:
            return oracle.forward(module, input, recipe.at)

    return forward


def pull(network: Network, input: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """(output, pullback of `cotangent` to `input`), both detached."""
    leaf = input.detach().requires_grad_(True)
    output = network(leaf)
    (pullback,) = torch.autograd.grad(output, leaf, cotangent)
    return output.detach(), pullback


class Gates(oracle_rules.PullbackMode):
    """Finds the gates of a running module as the oracle does, and applies faster rules."""

    def __init__(self, recipe: Recipe, temperature: float, in_place: bool = False) -> None:
        super().__init__(recipe, temperature)
        self._t = temperature
        self._in_place = in_place

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Same as the oracle's, but without reading `call.__name__`, which causes graph breaks.
        kwargs = dict(kwargs or {})
        if self._depth:
            if call in oracle_rules.POOLS and self.recipe.pool == "soft":
                return self._pool(oracle_rules.POOLS[call], *args, **kwargs, with_indices=call in _INDEXED)
            if call in _ACTIVATIONS and self.recipe.gate != "hard":
                return self._activate(call, args, kwargs)
        return call(*args, **kwargs)

    def _activate(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        if not args[0].is_floating_point():
            return call(*args, **kwargs)
        if isinstance(args[-1], bool):  # torch.compile passes `inplace` on by position, as the module wrote it
            kwargs["inplace"], args = args[-1], args[:-1]
        in_place = (kwargs.pop("inplace", False) or call in oracle_rules.ACTIVATIONS_IN_PLACE) and self._in_place
        rule = (_ACTIVATIONS[call](*args, **kwargs), self.recipe.gate, self.recipe.edges, self._t)
        return (
            args[0].copy_(_Activation.apply(args[0].clone(), *rule)) if in_place else _Activation.apply(args[0], *rule)
        )

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
        # Pools with indices and pools of volumes take the oracle's rule: F.unfold is for images.
        if dimensions == 3 or with_indices or return_indices:
            return super()._pool(
                dimensions,
                input,
                kernel_size,
                stride,
                padding,
                dilation,
                ceil_mode,
                return_indices,
                with_indices=with_indices,
            )
        stride = kernel_size if stride is None or stride in ((), []) else stride
        kernel, stride, padding, dilation = (
            _image_axes(value, dimensions, neutral)
            for value, neutral in ((kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1))
        )
        image = input if dimensions == 2 else input.unsqueeze(-2)
        batched = image if image.dim() == 4 else image.unsqueeze(0)
        pooled = _MaxPool.apply(batched, kernel, stride, padding, dilation, ceil_mode, self._t)
        pooled = pooled if image.dim() == 4 else pooled.squeeze(0)
        return pooled if dimensions == 2 else pooled.squeeze(-2)


class _Activation(torch.autograd.Function):
    """A ReLU-type function forward, the gate's rule backward."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, activation: oracle_rules.Activation, gate: str, edges: str, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(z)
        ctx.rule = (activation, gate, edges, temperature)
        return activation.plain(z)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None, None]:
        (z,) = ctx.saved_tensors
        return _through(z, cotangents[0], *ctx.rule), None, None, None, None


def _through(
    z: Tensor, g: Tensor, activation: oracle_rules.Activation, gate: str, edges: str, temperature: float
) -> Tensor:
    """What passes the gate: s g + (1 - s) opened, where s is the slope of the shut side."""
    if gate not in FORMULAS:
        return pass_gate(gate, activation, z, g, temperature, edges == "both")
    lower, upper, slope = activation.lower, activation.upper, activation.slope
    from_zero = lower == 0.0 if isinstance(lower, float) else False
    plain = from_zero and upper is None and isinstance(slope, float) and slope == 0.0
    if gate == "guided":
        return torch.relu(g).mul_(z > 0) if plain else guided_gate(activation, z, g)
    if gate == "deconvnet":
        opened = torch.relu(g)
    else:
        opened = g
        if lower is not None:
            opened = (z if from_zero else z - lower).div(temperature).sigmoid_().mul_(opened)
        if upper is not None and (edges == "both" or lower is None):
            opened = (upper - z).div_(temperature).sigmoid_().mul_(opened)
    return opened if isinstance(slope, float) and slope == 0.0 else slope * g + (1 - slope) * opened


class _MaxPool(torch.autograd.Function):
    """Max pooling of images [N, C, H, W] forward; backward, that of softmax-weighted pooling over unfolded windows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        ceil_mode: bool,
        temperature: float,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = (kernel, stride, padding, dilation)
        ctx.temperature = temperature
        return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (x,) = ctx.saved_tensors
        kernel, stride, padding, dilation = ctx.window
        pullback = _soft_pool_vjp(x, cotangents[0], kernel, stride, padding, dilation, ctx.temperature)
        return pullback, None, None, None, None, None, None


def _soft_pool_vjp(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    temperature: float,
) -> Tensor:
    """g_{x_j} = w_j (1 + (x_j - p) / T) g, summed over the windows that hold j by folding them back.

    Padded positions take part as 0; positions beyond them, which only ceil mode reaches, have no weight.
    """
    (rows, columns), (height, width) = g.shape[-2:], x.shape[-2:]
    padded = (height + 2 * padding[0], width + 2 * padding[1])
    # The windows reach this far; what is left over at the end belongs to none.
    extent = tuple(
        max((n - 1) * s + (k - 1) * d + 1, size)
        for n, s, k, d, size in zip((rows, columns), stride, kernel, dilation, padded, strict=True)
    )
    beyond = (extent[0] - padded[0], extent[1] - padded[1])
    inside = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    window = {"kernel_size": kernel, "stride": stride, "dilation": dilation}
    values = _windows(F.pad(inside, (0, beyond[1], 0, beyond[0])), window, kernel)
    scaled = values / temperature
    if any(beyond):
        outside = F.pad(torch.zeros_like(inside[:1, :1]), (0, beyond[1], 0, beyond[0]), value=1.0)
        scaled = scaled.masked_fill(_windows(outside, window, kernel) > 0, -math.inf)
    weights = torch.softmax(scaled, dim=2)
    pooled = (weights * values).sum(2, keepdim=True)
    pieces = (values - pooled).div_(temperature).add_(1).mul_(weights).mul_(g.flatten(2).unsqueeze(2))
    folded = F.fold(pieces.flatten(1, 2), extent, **window)
    return folded[..., padding[0] : padding[0] + height, padding[1] : padding[1] + width]


def _windows(x: Tensor, window: dict[str, Any], kernel: tuple[int, int]) -> Tensor:
    """[N, C, H, W] -> [N, C, positions in a window, windows]."""
    return F.unfold(x, **window).unflatten(1, (x.shape[1], kernel[0] * kernel[1]))


def _image_axes(value: Any, dimensions: int, neutral: int) -> tuple[int, int]:
    """A pool's parameter for both axes of an image; a row has `neutral` on the axis that it lacks."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    values = values * dimensions if len(values) == 1 else values
    return values if dimensions == 2 else (neutral, *values)
