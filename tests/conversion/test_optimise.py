"""Passes: each applies where it may, leaves alone what it must, and keeps every value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.bundle.manifest import Recipe
from surgeon.conversion import rewriting
from surgeon.conversion.capture.capture import Captured, capture
from surgeon.conversion.capture.nodes import source_module
from surgeon.conversion.passes.optimise import optimise, optimise_pullback
from surgeon.verify.oracle.reference import reference_pullback
from tests.networks import Apply, Together, random_norm
from tests.passes import NORM, count, image, keeps_values

aten = torch.ops.aten


FOLDABLE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Sequential(nn.Conv2d(2, 6, 3), random_norm(nn.BatchNorm2d, 6)), (2, 5, 5)),
    "grouped, no bias": (
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), random_norm(nn.BatchNorm2d, 6)),
        (4, 5, 5),
    ),
    "not affine, one dimension": (
        nn.Sequential(nn.Conv1d(2, 3, 2), random_norm(nn.BatchNorm1d, 3, affine=False)),
        (2, 5),
    ),
    "three dimensions": (nn.Sequential(nn.Conv3d(1, 2, 2), random_norm(nn.BatchNorm3d, 2)), (1, 3, 3, 3)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2), random_norm(nn.BatchNorm2d, 3)), (2, 4, 4)),
    "transposed, grouped": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), random_norm(nn.BatchNorm2d, 6)),
        (4, 4, 4),
    ),
}


def together(modules: Mapping[str, nn.Module], shapes: Sequence[tuple[int, ...]]) -> tuple[nn.Module, Tensor]:
    network = Together(modules, shapes)
    return network, image(2, *network.input_shape)


def left(captured: Captured, target: object) -> list[str]:
    """The networks of a Together in which the operator is left, and read."""
    nodes = [node for node in captured.graph.graph.nodes if node.target is target and node.users]
    return [source_module(node).split(".")[1] for node in nodes]


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    modules, shapes = zip(*FOLDABLE.values(), strict=True)
    applied, captured = keeps_values(*together(dict(zip(FOLDABLE, modules, strict=True)), shapes), "fold_batch_norm")
    assert (left(captured, NORM), applied) == ([], len(FOLDABLE))


def test_a_shared_weight_is_folded_for_each_use_by_itself() -> None:
    module = Apply(
        lambda x, conv, first, second: second(conv(first(conv(x)))),
        nn.Conv2d(2, 2, 3),
        random_norm(nn.BatchNorm2d, 2),
        random_norm(nn.BatchNorm2d, 2, affine=False),
    )
    applied, captured = keeps_values(module, image(2, 2, 7, 7), "fold_batch_norm")
    assert applied == 2
    assert count(captured, NORM) == 0


NOT_FOLDABLE: dict[str, Callable[..., Tensor]] = {
    "the convolution is read elsewhere": lambda x, conv, norm: (lambda y: norm(y) + y)(conv(x)),
    "something lies between": lambda x, conv, norm: norm(conv(x).relu()),
    "the norm comes first": lambda x, conv, norm: conv(norm(x)),
}


def test_batch_norm_stays_where_it_cannot_be_folded() -> None:
    modules = {
        name: Apply(function, nn.Conv2d(2, 2, 3), random_norm(nn.BatchNorm2d, 2))
        for name, function in NOT_FOLDABLE.items()
    }
    applied, captured = keeps_values(*together(modules, [(2, 5, 5)] * len(modules)), "fold_batch_norm")
    assert (left(captured, NORM), applied) == (list(modules), 0)


def test_batch_norm_stays_behind_a_computed_weight() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), random_norm(nn.BatchNorm2d, 2))
    assert keeps_values(module, image(2, 2, 5, 5), "fold_batch_norm")[0] == 0


def test_concatenations_grow_from_each_other() -> None:
    def dense(x: Tensor) -> Tensor:
        pieces = [x]
        for _ in range(3):
            pieces.append(torch.cat(pieces, 1).sin().mean(1, keepdim=True))
        return torch.cat(pieces, -3)

    applied, captured = keeps_values(Apply(dense), image(2, 2, 3, 3), "share_concatenations")
    assert applied == 2
    pieces = [node.args[0] for node in captured.graph.graph.nodes if node.target is aten.cat.default]
    assert [len(each) for each in pieces] == [2, 2, 2] or [len(each) for each in pieces] == [1, 2, 2, 2]


def test_concatenations_along_other_axes_or_of_other_pieces_stay() -> None:
    def unlike(x: Tensor) -> Tensor:
        y, z = x.sin(), x.cos()
        return torch.cat([torch.cat([x, y], 1).mean(1, keepdim=True), torch.cat([x, y, z], 2), torch.cat([y, x], 2)], 2)

    applied, _ = keeps_values(Apply(lambda x: unlike(x[:, :1])), image(2, 2, 3, 3), "share_concatenations")
    assert applied == 0


def test_identities_go() -> None:
    module = Apply(lambda x: F.adaptive_avg_pool2d(F.dropout(x.clone(), training=False), (5, 5)).contiguous().clone())
    applied, captured = keeps_values(module, image(2, 2, 5, 5), "drop_identities")
    assert applied >= 2
    assert captured.outputs[0] is captured.input


def test_adaptive_pools_to_another_size_stay() -> None:
    module = Apply(lambda x: F.adaptive_avg_pool2d(x, (5, 3)))
    assert keeps_values(module, image(2, 2, 5, 5), "drop_identities")[0] == 0


PADDINGS = {
    "on all sides": ((1, 1, 2, 2), 0.0),
    "left and right": ((2, 2), 0.0),
    "on one side": ((0, 1, 0, 1), 0.0),
    "with another value": ((1, 1, 1, 1), 0.5),
    "cropped": ((-1, -1), 0.0),
    "of channels": ((0, 0, 0, 0, 1, 1), 0.0),
}


def padded(widths: tuple[int, ...], value: float) -> nn.Module:
    channels = 4 if len(widths) == 6 else 2
    return Apply(lambda x, conv: conv(F.pad(x, widths, value=value)), nn.Conv2d(channels, 3, 3, padding=(1, 0)))


def test_symmetric_zero_padding_folds_into_a_convolution() -> None:
    modules = {name: padded(*how) for name, how in PADDINGS.items()}
    applied, captured = keeps_values(*together(modules, [(2, 6, 7)] * len(modules)), "fold_padding")
    assert (left(captured, aten.constant_pad_nd.default), applied) == (list(PADDINGS)[2:], 2)


def padded_pool(x: Tensor, conv: nn.Module) -> Tensor:
    """As TensorFlow's "same" padding is written in PyTorch."""
    return F.max_pool2d(F.pad(conv(x), (0, 1, 0, 1), value=-torch.inf), 3, 2)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_padding_with_minus_infinity_takes_no_part_in_a_soft_pool(temperature: float) -> None:
    module, x = Apply(padded_pool, nn.Conv2d(2, 3, 3)), image(2, 2, 8, 8)
    applied, _ = keeps_values(module, x, "bound_padding")
    assert applied == 1
    graph, cotangent = rewriting.rewrite(module, x), image(3, 3, 3, 3)
    given = (image(3, 2, 8, 8), cotangent)
    found = graph(*given, torch.tensor(temperature, dtype=torch.float64))
    expected = reference_pullback(module, *given, recipe=Recipe(), temperature=temperature)
    assert expected[1].isfinite().all()
    assert torch.allclose(found[1], expected[1], rtol=1e-10, atol=1e-12)


def test_the_list_is_applied_in_order_and_counted() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout(), random_norm(nn.BatchNorm2d, 3), nn.Dropout2d())
    captured = capture(module.double(), image(2, 2, 5, 5))
    applied = optimise(captured.graph)
    assert list(applied) == [
        *("fold_constants", "drop_identities", "canonicalize_gates"),
        *("fold_batch_norm", "fold_padding", "bound_padding", "share_concatenations"),
    ]
    # Dropout between the two would have kept the norm from folding.
    assert applied["fold_batch_norm"] == 1
    assert captured.outputs[0].target is aten.convolution.default


def scaled(x: Tensor, first: nn.Module, second: nn.Module, scale: nn.Module) -> Tensor:
    return second(torch.relu(first(x) * scale.log_scale.exp())).flatten(1)


def normalised(x: Tensor, norm: nn.Module, second: nn.Module) -> Tensor:
    return second(torch.relu(norm(x))).flatten(1)


class LogScale(nn.Module):
    """A scale per channel that the network computes, in its forward pass, from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.linspace(-1, 1, 4)[:, None, None])


SCALES = {
    "a batch norm's": Apply(normalised, random_norm(nn.BatchNorm2d, 3), nn.Conv2d(3, 2, 3, padding=1)),
    "one that the forward pass reads too": Apply(
        scaled, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), LogScale()
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_behind_a_gate_folds_into_the_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: dict[str, int] = {}
    monkeypatch.setattr(
        rewriting, "optimise_pullback", lambda program: applied.update(found := optimise_pullback(program)) or found
    )
    module, x = SCALES[name].double().eval(), image(2, 3, 6, 6)
    graph = rewriting.rewrite(module, x)
    assert applied == {"fold_scales": 1}
    other, cotangent = image(3, 3, 6, 6), image(3, 72)
    expected = reference_pullback(module, other, cotangent, recipe=Recipe(), temperature=0.5)
    with torch.no_grad():
        found = graph(other, cotangent, torch.tensor(0.5, dtype=torch.float64))
    assert all(torch.allclose(f, e, rtol=1e-12, atol=1e-12) for f, e in zip(found, expected, strict=True))
