"""Constants: what depends on no input is computed once, unless it would grow too large or is drawn anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.passes.constants import LARGEST, fold_constants
from surgeon.conversion.passes.optimise import optimise
from tests.networks import Apply, random_norm
from tests.passes import NORM, count, image, keeps_values


def targets(captured: Captured) -> set[str]:
    return {str(node.target) for node in captured.graph.graph.nodes if node.op == "call_function"}


def test_a_computed_weight_is_a_constant_into_which_batch_norm_folds() -> None:
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3))
    module = nn.Sequential(weighted, random_norm(nn.BatchNorm2d, 2)).double().eval()
    captured, x = capture(module, image(2, 2, 5, 5)), image(3, 2, 5, 5)
    assert optimise(captured.graph)["fold_constants"] == 1
    assert count(captured, NORM) == 0
    assert targets(captured) - {"aten._assert_tensor_metadata.default"} == {"aten.convolution.default"}
    assert torch.allclose(captured.graph(x), module(x), rtol=1e-12, atol=1e-12)


def masked(x: Tensor, conv: nn.Module) -> Tensor:
    """As windows of attention mark their pieces: assignments to slices, then comparisons that are broadcast."""
    pieces = x.new_zeros(4, 4)
    pieces[:2, 2:], pieces[2:, :2], pieces[2:, 2:] = 1, 2, 3
    flat = pieces.reshape(16)
    return conv(x).flatten(2) @ (flat[:, None] == flat[None]).to(x.dtype)


def test_masks_are_computed_once() -> None:
    _, captured = keeps_values(Apply(masked, nn.Conv2d(2, 2, 1)), image(2, 2, 4, 4), "fold_constants")
    assert not [target for target in targets(captured) if "scatter" in target or "eq" in target]


def test_what_would_grow_too_large_is_not_stored() -> None:
    def grown(x: Tensor) -> Tensor:
        return x * torch.ones(1, 1, dtype=x.dtype).expand(2, LARGEST).sum()

    _, captured = keeps_values(Apply(grown), image(2, 2, 3, 3), "fold_constants")
    assert "aten.expand.default" in targets(captured)


def test_what_is_drawn_anew_is_no_constant() -> None:
    captured = capture(Apply(lambda x: x + torch.rand(3, dtype=x.dtype)), image(2, 2, 3, 3))
    assert fold_constants(captured.graph) == 0
