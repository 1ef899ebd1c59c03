"""The gates' numbers computed directly: the author's own module, its gates swapped for custom autograd functions.

Independent of surgeon's own oracle. `python -m tests.direct_gates BUNDLE PHOTO…` compares the real EfficientNet-Lite0
with a bundle of it that was exported with --gate-outputs.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.analysis.evaluate.gate_statistics import QUANTILES, PhotoStatistics, statistics
from surgeon.runtime.session import load


class SoftReLU(torch.autograd.Function):
    """ReLU, or ReLU6 with a `top`; backward sigmoid(z / T) g."""

    @staticmethod
    def forward(ctx, z, temperature, top):
        ctx.save_for_backward(z)
        ctx.temperature = temperature
        return z.clamp(0, top) if top else z.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return torch.sigmoid(z / ctx.temperature) * g, None, None


class SoftPool(torch.autograd.Function):
    """Max pooling; backward, autograd of softmax-weighted pooling over unfolded, zero-padded windows."""

    @staticmethod
    def forward(ctx, x, temperature, kernel, stride, padding):
        ctx.save_for_backward(x)
        ctx.how = (temperature, kernel, stride, padding)
        return F.max_pool2d(x, kernel, stride, padding)

    @staticmethod
    def backward(ctx, g):
        (x,), (temperature, kernel, stride, padding) = ctx.saved_tensors, ctx.how
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            windows = F.unfold(leaf, kernel, padding=padding, stride=stride).unflatten(1, (x.shape[1], -1))
            pooled = ((windows / temperature).softmax(2) * windows).sum(2).reshape(g.shape)
            (back,) = torch.autograd.grad(pooled, leaf, g)
        return back, None, None, None, None


@dataclass
class Call:
    """One call of a gate or pool: what came in, and what came back to its output."""

    inner: nn.Module
    before: Tensor
    arrived: Tensor | None = None


class Swapped(nn.Module):
    """A gate or pool module, soft or as it was, that notes each of its calls."""

    def __init__(self, inner: nn.Module, temperature: float | None, log: list[Call]) -> None:
        super().__init__()
        self.inner, self.temperature, self.log = inner, temperature, log

    def forward(self, x: Tensor) -> Tensor:
        call = Call(self.inner, x.detach().clone())
        self.log.append(call)
        if self.temperature is None:
            out = copy.deepcopy(self.inner)(x.clone())
        elif isinstance(self.inner, nn.MaxPool2d):
            inner = self.inner
            out = SoftPool.apply(x, self.temperature, inner.kernel_size, inner.stride, inner.padding)
        else:
            out = SoftReLU.apply(x, self.temperature, 6.0 if isinstance(self.inner, nn.ReLU6) else None)
        out.register_hook(lambda g: setattr(call, "arrived", g.detach().clone()))
        return out


def swapped(network: nn.Module, temperature: float | None) -> tuple[nn.Module, list[Call]]:
    network, log = copy.deepcopy(network).eval(), []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.ReLU, nn.ReLU6, nn.MaxPool2d)):
                setattr(parent, name, Swapped(child, temperature, log))
    return network, log


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def direct(network: nn.Module, x: Tensor, cotangent: Tensor, temperature: float, near: float):
    """Cosine at the input, and of each gate or pool in the order of calls a dict of its numbers."""
    pulled, logs = [], []
    for t in (temperature, None):
        module, log = swapped(network, t)
        leaf = x.clone().requires_grad_(True)
        pulled.append(torch.autograd.grad(module(leaf), leaf, cotangent)[0])
        logs.append(log)
    rows = []
    for soft, hard in zip(*logs, strict=True):
        row = {"cosine": cosine(soft.arrived, hard.arrived)}
        if not isinstance(soft.inner, nn.MaxPool2d):
            z = soft.before.double()
            leaf = soft.before.clone().requires_grad_(True)
            slope = torch.autograd.grad(copy.deepcopy(soft.inner)(leaf.clone()).sum(), leaf)[0]
            row |= {
                "quantiles": numpy.quantile((z / temperature).numpy(), QUANTILES),
                "near": float(((z / temperature).abs() < near).double().mean()),
                "open": float((z > 0).double().mean()),
                "gap": float((torch.sigmoid(z / temperature) - slope).abs().mean()),
            }
        rows.append(row)
    return cosine(*pulled), rows


def differences(found: PhotoStatistics, expected: tuple[float, list[dict]]) -> dict[str, float]:
    """The largest difference of each number, over the gates; quantiles relative to the largest."""
    cosine, rows = expected
    worst = {"input": abs(found.cosine - cosine)}
    for gate, row in zip(found.gates, rows, strict=True):
        assert (gate.quantiles is None) == ("quantiles" not in row)
        for name, value in row.items():
            scale = float(numpy.abs(value).max()) if name == "quantiles" else 1.0
            difference = float(numpy.abs(numpy.subtract(getattr(gate, name), value)).max()) / scale
            worst[name] = max(worst.get(name, 0.0), difference)
    return worst


def main(bundle: str, *photos: str) -> None:
    from surgeon.network.sources import resolve_again
    from surgeon.runtime.photos import load_photo

    session = load(bundle)
    network = resolve_again(session.manifest).module
    for photo in photos:
        image = load_photo(photo, session.manifest.image)[None]
        target = int(session.pullback(image, session.one_hot(0)).output.argmax())
        cotangent = session.one_hot(target)
        temperature = session.manifest.defaults.temperature
        found = statistics(session.manifest, session.gates(image, cotangent, temperature), temperature)
        expected = direct(network, torch.from_numpy(image), torch.from_numpy(cotangent), temperature, 1.0)
        told = ", ".join(f"{name} {value:.1e}" for name, value in differences(found, expected).items())
        print(f"{photo}: {len(found.gates)} gates; largest differences: {told}")


if __name__ == "__main__":
    main(*sys.argv[1:])
