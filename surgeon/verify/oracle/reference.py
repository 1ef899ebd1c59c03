"""The independent oracle: pullbacks by plain autograd on the original module.

It never reads the captured graph, so a mistake in capture, rules or export cannot hide: the network runs as its author
wrote it, under the torch function mode of `surgeon.verify.oracle.rules`.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.errors import SurgeonError, first_line
from surgeon.network.call_patching import compiled_by_their_original, functions_by_their_forward, without_checkpoints
from surgeon.network.layers import cut, joined, only_tensor
from surgeon.verify.oracle.activations import ACTIVATIONS
from surgeon.verify.oracle.rules import Gated, PullbackMode, Temperatures

FLOOR = 1e-20
"""Smallest norm that a step or a projection divides by."""


def reference_pullback(
    module: nn.Module, input: Tensor, cotangent: Tensor, *, recipe: Recipe, temperature: Temperatures
) -> tuple[Tensor, Tensor]:
    """The network's output, and the pullback of `cotangent` at that output to the input.

    `input` is [N, ...], in a floating dtype of the module; `cotangent` has the output's shape, or is the same for each
    sample. `temperature` is as `Temperatures`. With `recipe.at`, output means the output of those layers. Returns
    (output, pullback), detached; the module must be in eval mode. Raises SurgeonError where the output is not one
    tensor, or `recipe.at` names no layer.
    """
    return _pull(module, input, lambda output: cotangent.expand_as(output), recipe, temperature)


def reference_ascent(
    module: nn.Module,
    input: Tensor,
    cotangent: Tensor | None,
    *,
    recipe: Recipe,
    range: tuple[float, float] | None,
    margin: float = 0.0,
    temperature: Temperatures,
    step_size: float,
    radius: float,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`steps` times: step along the pullback of the objective, project on the ball around `input`, clamp to the range.

    `cotangent` weighs the output (logit), is the target distribution (cross-entropy), or is unused (energy). `range`
    None means no clamp; an infinite `radius` means no projection; a negative `step_size` descends. Returns (perturbed,
    output of perturbed, last pullback, score [steps + 1, N]).
    """
    if steps < 1:
        raise SurgeonError(f"an ascent of {steps} steps", "Take at least one step")

    perturbed = input
    scores = []
    for _ in builtins.range(steps):
        perturbed, output, pullback = reference_step(
            module,
            perturbed,
            input,
            cotangent,
            recipe=recipe,
            range=range,
            margin=margin,
            temperature=temperature,
            step_size=step_size,
            radius=radius,
        )
        scores.append(objective_score(output, cotangent, recipe.objective))
    with torch.no_grad(), without_checkpoints():
        output = forward(module, perturbed, recipe.at)
    scores.append(objective_score(output, cotangent, recipe.objective))
    return perturbed, output, pullback, torch.stack(scores)


def reference_step(
    module: nn.Module,
    input: Tensor,
    origin: Tensor,
    cotangent: Tensor | None,
    *,
    recipe: Recipe,
    range: tuple[float, float] | None,
    margin: float = 0.0,
    temperature: Temperatures,
    step_size: float,
    radius: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of `reference_ascent` from `input`, in an ascent that began at `origin`.

    Returns (perturbed, output of input, pullback at input).
    """

    def objective(output: Tensor) -> Tensor:
        return objective_gradient(output, cotangent, recipe.objective)

    output, pullback = _pull(module, input, objective, recipe, temperature)
    perturbed = input + step_size * step_direction(pullback, input, recipe)
    perturbed = project(perturbed, origin, radius, recipe.norm)
    if range is not None:
        perturbed = perturbed.clamp(range[0] - margin, range[1] + margin)
    return perturbed, output, pullback


def objective_score(output: Tensor, cotangent: Tensor | None, objective: str) -> Tensor:
    """The value per sample, [N], that an ascent raises. Classes are on axis 1."""
    if objective == "energy":
        return 0.5 * _total(output.square())
    if cotangent is None:
        raise SurgeonError(f"objective {objective} without a cotangent", "Pass the cotangent")
    if objective == "logit":
        return _total(cotangent * output)
    assert objective == "cross-entropy"
    return _total(cotangent * output.log_softmax(1))


def _total(value: Tensor) -> Tensor:
    """[N, …] -> [N], also where a sample has one number without an axis."""
    return value.reshape(len(value), -1).sum(1)


def objective_gradient(output: Tensor, cotangent: Tensor | None, objective: str) -> Tensor:
    """The gradient of `objective_score` by the output, by autograd."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective_score(leaf, cotangent, objective).sum(), leaf)
    return gradient


def step_direction(pullback: Tensor, at: Tensor, recipe: Recipe) -> Tensor:
    """The step of size one: unit g/|g|, relative g/|g| * |x|, raw g; norms per sample."""
    if recipe.step == "raw":
        return pullback
    direction = pullback / sample_norm(pullback, recipe.norm).clamp(min=FLOOR)
    if recipe.step == "unit":
        return direction
    assert recipe.step == "relative"
    return direction * sample_norm(at, recipe.norm)


def project(perturbed: Tensor, origin: Tensor, radius: float, norm: str) -> Tensor:
    """`perturbed`, its difference from `origin` scaled back to `radius` where it is longer."""
    if radius == float("inf"):
        return perturbed
    delta = perturbed - origin
    return origin + delta * (radius / sample_norm(delta, norm).clamp(min=FLOOR)).clamp(max=1.0)


def sample_norm(values: Tensor, norm: str) -> Tensor:
    """The p-norm of each sample, shaped [N, 1, ...] to broadcast against `values`."""
    lengths = torch.linalg.vector_norm(values.flatten(1), float(norm), dim=1)
    return lengths.reshape(-1, *[1] * (values.dim() - 1))


def forward(module: nn.Module, input: Tensor, at: Sequence[str] = ()) -> Tensor:
    """The output of the module, or the joined outputs of the layers `at`: modules and entries, not nodes."""
    input = input.clone()  # some networks begin with an operation in place
    if not at:  # without a hook, which torch.compile does not like
        return only_tensor(module(input), type(module).__name__)
    with cut(module, at):
        return joined(module(input))


def _pull(
    module: nn.Module, input: Tensor, cotangent: Callable[[Tensor], Tensor], recipe: Recipe, temperature: Temperatures
) -> tuple[Tensor, Tensor]:
    return pull_by(PullbackMode(recipe, temperature), module, input, cotangent)


def pull_by(
    rules: PullbackMode, module: nn.Module, input: Tensor, cotangent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(output, pullback of `cotangent(output)`), by autograd under `rules`."""
    if module.training:
        raise SurgeonError("the network is in training mode", "Call .eval() on it first")
    with torch.enable_grad(), _seen_by_rules():
        leaf = input.detach().clone().requires_grad_(True)
        with _constant(module), rules.within(module):
            output = forward(module, leaf, rules.recipe.at)
        rules.assign(output)
        try:
            (pullback,) = torch.autograd.grad(output, leaf, cotangent(output.detach()).to(output.dtype))
        except RuntimeError as error:
            raise SurgeonError(
                f"autograd cannot differentiate the network as it is written ({first_line(error)})",
                "Leave that operation out, or give --no-verify",
            ) from error
    return output.detach(), pullback


@contextlib.contextmanager
def _seen_by_rules() -> Iterator[None]:
    """Let the function mode see each call of the network: no recomputation, compiled code, or custom backward."""
    gates = {call.__name__ for call in ACTIVATIONS}
    with without_checkpoints(), compiled_by_their_original(gates), functions_by_their_forward(but=(Gated,)):
        yield


@contextlib.contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Temporarily freeze parameters, so that `requires_grad` marks exactly what depends on the input."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
