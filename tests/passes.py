"""What tests of passes over a captured graph share: one pass applied, and every value kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.passes import optimise as passes

NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def keeps_values(module: nn.Module, x: Tensor, name: str) -> tuple[int, Captured]:
    """Apply one pass; how often it did, and the graph, which computes what the module does."""
    module = module.double().eval()
    captured = capture(module, x)
    count = getattr(passes, name)(captured.graph)
    captured.graph.graph.lint()
    captured.graph.recompile()
    other = torch.cat([x, 2 * x[:1]])
    assert torch.allclose(captured.graph(other), module(other), rtol=1e-12, atol=1e-12)
    return count, captured


def count(captured: Captured, target: object) -> int:
    return sum(node.target is target for node in captured.graph.graph.nodes)
