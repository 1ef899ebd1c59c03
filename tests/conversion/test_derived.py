"""Derivatives that come from autograd, operator by operator, through the whole rewriting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import capture
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import rewrite_program
from surgeon.conversion.rules.derived import DerivedRule, OperatorCall
from surgeon.conversion.writers.translation import translate
from surgeon.errors import ConversionError
from tests.networks import Side

aten = torch.ops.aten
HARD = Recipe(gate="hard", pool="hard")
SHAPE = (3, 5, 4)  # of one sample; the traced batch is 4 too, so that a rule may mistake one for the other
BATCH = 4

GENERATOR = torch.Generator().manual_seed(2)
SCALE = torch.rand(4, generator=GENERATOR, dtype=torch.float64) + 0.5
INDEX = torch.tensor([3, 0, 0])
MASK = torch.tensor([True, False, True, True])


GRID = torch.rand(1, 3, 2, 2, generator=GENERATOR, dtype=torch.float64) * 2.4 - 1.2


def sampled(x: Tensor, mode: str = "bilinear", **options: Any) -> Tensor:
    """A fixed grid, a part of it outside the picture."""
    return F.grid_sample(x, GRID.to(x).expand(x.shape[0], -1, -1, -1), mode=mode, **options)


def sampled_where_it_says(x: Tensor, **options: Any) -> Tensor:
    """Two channels of the input are places in the third."""
    return F.grid_sample(x[:, :1], x[:, 1:].permute(0, 2, 3, 1), align_corners=False, **options)


def reduced(x: Tensor, how: str) -> Tensor:
    return torch.ones_like(x).scatter_reduce(2, INDEX.reshape(3, 1, 1).expand(x.shape[0], 3, 5, 4) * 1, x * x, how)


def scattered(x: Tensor) -> Tensor:
    """Positions of the input's own order, as sorting networks have them."""
    return torch.zeros_like(x).scatter_add(2, x.argsort(2), x * x)


# By operator; each maps [N, 3, 5, 4] to [N, …], and is differentiable almost everywhere.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, (3, 3)),
    "antialiased": lambda x: F.interpolate(x, (3, 7), mode="bilinear", antialias=True),
    "antialiased cubic": lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True),
    "bilinear": lambda x: F.bilinear(x[:, 0], x[:, 1], SCALE.to(x).reshape(4, 1, 1) * SCALE.to(x).outer(SCALE.to(x))),
    "cdist": lambda x: torch.cdist(x[:, 0], x[:, 1]),
    "cumprod": lambda x: x.cumprod(2),
    "diagonal": lambda x: x.diagonal(-1, 3, 2) * 2,
    "exp2": torch.exp2,
    "fmod": lambda x: torch.fmod(x, 0.7),
    "grid sample": lambda x: sampled(x, align_corners=False),
    "grid sample, border": lambda x: sampled(x, padding_mode="border", align_corners=True),
    "grid sample, nearest": lambda x: sampled(x, "nearest", align_corners=False),
    "grid sample, bicubic": lambda x: sampled(x, "bicubic", align_corners=True),
    "grid sample, own grid": sampled_where_it_says,
    "grid sample, own grid, reflected": lambda x: sampled_where_it_says(x, padding_mode="reflection"),
    "k-th value": lambda x: x.kthvalue(2, 3).values,
    "log cumsum exp": lambda x: x.logcumsumexp(2),
    "median": lambda x: x.median(3, keepdim=True).values,
    "prod": lambda x: x.prod(2),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "scatter reduce": lambda x: reduced(x, "sum"),
    "scatter reduce, mean": lambda x: reduced(x, "mean"),
    "scatter reduce, largest": lambda x: reduced(x, "amax"),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((2, 3), keepdim=True),
    "atan2": lambda x: torch.atan2(x, x.cos() + 2),
    "cumsum": lambda x: x.cumsum(2),
    "elu": F.elu,
    "erf": torch.erf,
    "exp": torch.exp,
    "flip": lambda x: x.flip(1, 3) * x,
    "gather": lambda x: x.gather(3, INDEX.expand(x.shape[0], 3, 5, 3)) * 2,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "group norm": lambda x: F.group_norm(x, 3, torch.tensor([0.5, 1.5, 2.0]).to(x), torch.ones(3).to(x)),
    "hardsigmoid": lambda x: F.hardsigmoid(4 * x),
    "hardswish": lambda x: F.hardswish(3 * x),
    "index": lambda x: x[:, :, :, INDEX],
    "index select": lambda x: x.index_select(2, INDEX),
    "layer norm": lambda x: F.layer_norm(x, (5, 4)) * SCALE.to(x),
    "log": lambda x: torch.log(x * x + 0.1),
    "log softmax": lambda x: x.log_softmax(1),
    "log sum exp": lambda x: x.logsumexp((1, 2)),
    "masked fill": lambda x: x.masked_fill(x > 0.5, 0.3) * x,
    "max of two": lambda x: torch.maximum(x, x.flip(3)),
    "max with indices": lambda x: x.max(3).values,
    "min of two": lambda x: torch.minimum(x, SCALE.to(x)),
    "mish": F.mish,
    "norm": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "pow": lambda x: x**3,
    "pow of tensors": lambda x: (x * x + 0.5) ** x,
    "reflection pad": lambda x: F.pad(x, (2, 1, 1, 0), mode="reflect"),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) * 2,
    "roll": lambda x: x.roll((1, 2), (1, 2)) * x,
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "scatter add": scattered,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softmax": lambda x: x.softmax(3),
    "softplus": lambda x: F.softplus(x, beta=2),
    "sort": lambda x: x.sort(3).values * SCALE.to(x),
    "sqrt": lambda x: torch.sqrt(x * x + 0.1),
    "standard deviation": lambda x: x.std((2, 3)),
    "tanh": torch.tanh,
    "top two": lambda x: x.topk(2, 2).values,
    "variance": lambda x: x.var(3, correction=0),
    "where": lambda x: torch.where(x > 0, x * x, x.sin()),
    "where with mask": lambda x: torch.where(MASK, x, 1 / (x * x + 1)),
}


# All of them export; these stand for the kinds of graphs that autograd makes.
EXPORTED = (
    *("amax", "elu", "gather", "gelu", "group norm", "hardswish", "index", "layer norm", "max of two"),
    *("adaptive max pool", "antialiased cubic", "cumprod", "diagonal", "grid sample, border", "grid sample, own grid"),
    *("median", "prod"),
    *("max with indices", "norm", "pow", "reflection pad", "sigmoid", "softmax", "softplus", "variance", "where"),
)


def network(names: Iterable[str]) -> nn.Module:
    return Side([FUNCTIONS[name] for name in names]).eval()


def image(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((batch, *SHAPE), generator=generator, dtype=torch.float64).to(dtype)


def expected(name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cotangent, output, gradient) of one function, by autograd."""
    x = x.clone().requires_grad_(True)
    output = FUNCTIONS[name](x).flatten(1)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(x.dtype)
    (gradient,) = torch.autograd.grad(output, x, cotangent)
    return cotangent, output.detach(), gradient


def together(names: Iterable[str], x: Tensor) -> tuple[Tensor, Tensor]:
    """(inputs, cotangents) that give all gradients in one call: `x` once per function, and each its own cotangent."""
    blocks = [expected(name, x)[0] for name in names]
    return x.repeat(len(blocks), 1, 1, 1), torch.block_diag(*blocks)


def apart(names: Sequence[str], outputs: Tensor, pulled: Tensor, batch: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Output and pullback of each function, out of those of all."""
    widths = [expected(name, image(2))[0].shape[1] for name in names]
    rows, parts = pulled.split(batch), outputs[:batch].split(widths, 1)
    return {name: (part, row) for name, part, row in zip(names, parts, rows, strict=True)}


@functools.cache
def pulled_by_torch() -> dict[str, tuple[Tensor, Tensor]]:
    x, names = image(3), list(FUNCTIONS)
    pullback = PullbackModule(capture(network(names), image(BATCH)), HARD)
    return apart(names, *pullback(*together(names, x)), 3)


@functools.cache
def pulled_by_onnx_runtime() -> dict[str, tuple[Tensor, Tensor]]:
    x = image(3, torch.float32)
    program, _ = rewrite_program(network(EXPORTED), image(BATCH, torch.float32), HARD)
    model = translate(program, (), None, ["input", "cotangent"], ["output", "pullback"], 18)
    content = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    fed = [value.numpy() for value in together(EXPORTED, x)]
    return apart(EXPORTED, *map(torch.from_numpy, session.run(None, dict(zip(names, fed, strict=True)))), 3)


def differs(found: Tensor, wanted: Tensor) -> float:
    """Relative L2."""
    assert found.shape == wanted.shape
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derived_rules_are_the_gradient_at_another_batch(name: str) -> None:
    _, output, gradient = expected(name, image(3))
    found, pulled = pulled_by_torch()[name]
    assert differs(found, output) < 1e-12
    # ATen's own backward of hardsigmoid holds 1/6 in float32.
    assert differs(pulled, gradient) < (1e-7 if name == "hardsigmoid" else 1e-10)


@pytest.mark.parametrize("name", EXPORTED)
def test_derived_rules_under_onnx_runtime(name: str) -> None:
    _, output, gradient = expected(name, image(3, torch.float32))
    found, pulled = pulled_by_onnx_runtime()[name]
    assert differs(found, output) < 1e-5
    assert differs(pulled, gradient) < 2e-5


def test_an_operator_without_derivative_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"no exportable derivative for aten\.igamma"), FakeTensorMode():
        x = torch.zeros(2, 3)
        DerivedRule(OperatorCall(aten.igamma.default, (x, x), {}, (True, False)))
