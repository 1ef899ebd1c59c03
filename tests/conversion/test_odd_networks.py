"""Networks written in ways that have gone wrong: each against the independent oracle, or refused in so many words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.bundle.manifest import Defaults, Model, Recipe
from surgeon.conversion.capture.capture import capture
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import rewrite
from surgeon.conversion.rules.convolutions import Geometry
from surgeon.conversion.rules.pools import PoolWindows
from surgeon.errors import ConversionError, SurgeonError
from surgeon.exporting import export
from surgeon.network.sources import Source
from surgeon.verify.oracle.reference import reference_pullback

T = 0.7
SCALARS = Defaults(step_size=1.0, radius=2.0)


class Own(nn.ReLU):
    """A user's ReLU: a module, and a gate, as its base class is."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(input)


class After(nn.Module):
    """`functions` side by side, behind a convolution and a user's own ReLU: [N, 3, H, W] -> [N, their elements]."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.relu, self.functions = nn.Conv2d(3, 4, 3), Own(), functions

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv(x))
        return torch.cat([function(h) for function in self.functions], 1)


def shuffled(h: Tensor) -> Tensor:
    return h.unflatten(1, (2, 2)).transpose(1, 2).contiguous().view(h.shape[0], -1)


def in_one_batch(h: Tensor) -> Tensor:
    """Two pictures for each sample go through the same layers, as in networks that compare them."""
    first, second = torch.chunk(torch.cat([h, h.flip(3)]), 2, dim=0)
    return (first * second).flatten(1)


def partly_assigned(h: Tensor) -> Tensor:
    h = h - 0.2
    h[:, 1:3] = F.relu(h[:, 1:3])
    return h.flatten(1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a copy that a view needs": shuffled,
    "a batch in halves": in_one_batch,
    "a gate in other words": lambda h: torch.maximum(h - 0.3, torch.zeros_like(h)).flatten(1),
    "pixel shuffle": lambda h: F.pixel_shuffle(h, 2).flatten(1),
    "normalised features": lambda h: F.normalize(h.flatten(1)),
    "a norm with a floor": lambda h: h.flatten(1) / h.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-6),
    "a pre-activation that is overwritten": partly_assigned,
    "cosine similarity": lambda h: F.cosine_similarity(h, h.roll(1, 2), 1).flatten(1),
    "threshold": lambda h: F.threshold(h - 0.2, 0.1, 3.0).flatten(1),
    "adaptive max pooling": lambda h: F.adaptive_max_pool2d(h - 0.3, (2, 1)).flatten(1),
    "adaptive max pooling, cells of several sizes": lambda h: F.adaptive_max_pool2d(h - 0.3, (3, 5)).flatten(1),
    "adaptive max pooling, a module": lambda h: nn.AdaptiveMaxPool1d(2)(h.flatten(2)).flatten(1),
    "a random leaky ReLU": lambda h: F.rrelu(h - 0.2).flatten(1),
    "another order in memory": lambda h: h.as_strided((h.shape[0], 4, 1, 4, 4), (64, 16, 9, 1, 4)).flatten(1),
    "instance norm": lambda h: F.instance_norm(h).flatten(1),
}


class Foreign(nn.Module):
    """A layer and a weight as one may call them who does not write in English."""

    def __init__(self) -> None:
        super().__init__()
        self.größe, self.权重 = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.größe(x)).mean((2, 3)) * self.权重


def test_names_that_are_not_ascii(tmp_path: Path) -> None:
    """In both formats, and with the weights in the files themselves."""
    bundle = export(Foreign(), tmp_path / "bundle", defaults=SCALARS, input_shape=(3, 6, 6), single_file=True)
    assert bundle.manifest.artifacts.keys() >= {"pullback.ts", "ascent.onnx"}
    assert not list(bundle.path.glob("*.bin"))


@pytest.mark.parametrize(("network", "at"), [(nn.Identity(), ()), (nn.Sequential(nn.Dropout(), nn.ReLU()), ("0",))])
def test_an_output_that_is_the_input_is_refused(tmp_path: Path, network: nn.Module, at: tuple[str, ...]) -> None:
    with pytest.raises(ConversionError, match="is the input itself, whose pullback is the cotangent"):
        export(network, tmp_path / "bundle", Recipe(at=at), input_shape=(3, 6, 6))


def built(*functions: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return After(*functions).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)


RECIPES = {
    "soft": Recipe(),
    "modules only": Recipe(gate_scope="modules"),
    "guided": Recipe(gate="guided", pool="hard"),
}


@functools.cache
def pulled(recipe: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of the explicit graph of all FUNCTIONS: their cotangents, the output, and each function's pullback in turn."""
    module, x = built(*FUNCTIONS.values())
    outputs = [function(module.relu(module.conv(x))) for function in module.functions]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(output.shape, generator=generator, dtype=x.dtype) for output in outputs]
    temperature = [torch.tensor(T, dtype=x.dtype)] if RECIPES[recipe].gate == "soft" else []
    # The input once for each function, with a cotangent that is zero at the others.
    rows = x.repeat(len(outputs), 1, 1, 1)
    output, pullback = rewrite(module, x, RECIPES[recipe])(rows, torch.block_diag(*cotangents), *temperature)
    return cotangents, output[: len(x)], pullback.unflatten(0, (len(outputs), len(x)))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_networks_agree_with_the_oracle(name: str, recipe: str) -> None:
    place = list(FUNCTIONS).index(name)
    cotangents, outputs, pullbacks = pulled(recipe)
    module, x = built(FUNCTIONS[name])
    output, expected = reference_pullback(module, x, cotangents[place], recipe=RECIPES[recipe], temperature=T)
    found = outputs.split([cotangent.shape[1] for cotangent in cotangents], 1)[place]
    # instance norm keeps its statistics in the default precision
    assert torch.allclose(found, output, rtol=1e-6)
    assert (pullbacks[place] - expected).norm() < 1e-6 * expected.norm()
    assert expected.norm() > 1e-3


def test_soft_gates_without_a_temperature_are_refused() -> None:
    module, x = built(lambda h: h.flatten(1))
    with pytest.raises(SurgeonError, match="temperature"):
        PullbackModule(capture(module, x), Recipe())(x, torch.ones(2, 64, dtype=x.dtype))


def test_half_precision_pools_have_numbers_at_small_temperatures() -> None:
    x = torch.tensor([[[[0.0, 300.0], [-600.0, 1.0]]]], dtype=torch.float16)
    windows = PoolWindows((2, 2), (1, 1), Geometry.of((2, 2), (2, 2), (0, 0), (1, 1), 2), False)
    g, values = torch.ones(1, 1, 1, 1, dtype=x.dtype), x.amax((2, 3), keepdim=True)
    found = windows.soft(g, values, x, torch.tensor(1000.0, dtype=x.dtype))
    assert found.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


class Named(nn.Module):
    """Buffers called as the artifacts' own values are, behind a last ReLU that shuts classes."""

    names = ("input", "output", "temperature", "score", "step_size", "radius", "steps", "none", "climbed", "scores")

    def __init__(self) -> None:
        super().__init__()
        for name in self.names:
            self.register_buffer(name, torch.rand(3, 1, 1) + 0.5)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = x * getattr(self, name)
        return F.relu(self.head(x.mean((2, 3))))


def source(module: nn.Module, *shape: int) -> Source:
    model = Model("odd", "tests:odd", "random", "unknown", 0)
    return Source(module.eval().requires_grad_(False), shape, None, None, model, 0.3)


def test_buffers_may_have_the_names_of_the_artifacts_values(tmp_path: Path) -> None:
    torch.manual_seed(1)
    recipe = Recipe(gate="hard", pool="hard")
    bundle = export(source(Named(), 3, 5, 5), tmp_path / "odd", recipe, SCALARS, formats=["onnx"])
    assert {line.artifact for line in bundle.manifest.verification} == set(bundle.manifest.artifacts)


def test_what_onnx_has_no_word_for_is_one_line(tmp_path: Path) -> None:
    module = After(lambda h: torch.hypot(h, h + 1).flatten(1))
    with pytest.raises(ConversionError, match="hypot") as caught:
        export(source(module, 3, 5, 5), tmp_path / "odd", Recipe(), SCALARS, formats=["onnx"])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
