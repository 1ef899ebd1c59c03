"""Capture: a functional graph with a dynamic batch, which knows where each node comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from surgeon.bundle.manifest import Recipe
from surgeon.conversion.capture.capture import capture
from surgeon.conversion.capture.nodes import source_classes, source_line, source_module
from surgeon.conversion.pullback import PullbackModule
from surgeon.conversion.rewriting import rewrite
from surgeon.conversion.rules import CONSTANT, DERIVED, RULES
from surgeon.errors import ConversionError, SurgeonError
from tests.networks import NETWORKS, Side, Stem, build, example

HARD = Recipe(gate="hard", pool="hard")
aten = torch.ops.aten


class Apply(nn.Module):
    """A function as a module, in this file, whose lines are what messages name."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def image(batch: int = 4) -> Tensor:
    return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def untracked(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.exp()


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y += 1
    F.relu(y, inplace=True)
    z = y * 1
    z[:, 0] = 0
    z[:, :, 1:3, ::2] = x[:, :, :2, :3]
    return z * x


# Each differs from its neighbour of one line in what autograd makes of it. These are about a whole network.
WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "a view of the input": lambda x: x.view(x.shape[0], -1),
    "the input changed in place": lambda x: F.relu(x, inplace=True) * 2,
    "the input changed in place twice": lambda x: x.sub_(0.1).div_(0.5).relu(),
    "the batch as a number": lambda x: x.relu().reshape(len(x), -1)[:, : 4 * int(x.shape[1])],
    "the batch as a number, the input changed": lambda x: x.sub_(0.1).div_(0.5).relu().reshape(len(x), -1),
    "a copy at the end": lambda x: F.dropout(x.relu(), training=False).clone(),
    "in another dtype": lambda x: x.to(torch.float32) * 2,
}
# These may stand side by side in one.
PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "values changed in place": in_place,
    "detached": lambda x: x.detach() * x,
    "without gradient": lambda x: untracked(x) * x,
    "by an index that depends on the input": lambda x: x.gather(1, x.max(1, keepdim=True).indices),
    "values and indices": lambda x: (lambda values, indices: values * indices)(*x.sort(2)),
    "rounded to integers": lambda x: x * (3 * x).long(),
    "by a mask that depends on the input": lambda x: x * (x > 0.2),
    "pieces that nobody reads": lambda x: x.split([2, 1, 3], 2)[1] + x.unbind(3)[0].unsqueeze(2)[..., :1],
    "a number first": lambda x: 2 - x / 3 + 1 / (x * x + 1),
    "a negative and overlong slice": lambda x: x[:, -9:9, -3:, ::4],
    "pooled in one dimension": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1),
    "used twice": lambda x: x @ x.transpose(2, 3) + x,
    "noise that nobody reads": lambda x: (torch.randn_like(x), x.relu())[1],
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x.sin()),
    "constants": lambda x: x * torch.linspace(0, 1, 6, dtype=torch.float64) + torch.ones(2, 1, 1).double(),
}


def keeps(pullback: PullbackModule, function: Callable[[Tensor], Tensor], before: int = 0, behind: int = 0) -> None:
    """Hold values and gradient to the function's, which has its output between so many columns of others'."""
    for batch in (1, 3):
        x = image(batch).requires_grad_(True)
        output = function(x.clone())
        g = torch.randn_like(output)
        (gradient,) = torch.autograd.grad(output, x, g)
        given = image(batch)
        cotangent = F.pad(g.flatten(1), (before, behind)) if before or behind else g
        found, pulled = pullback(given, cotangent)
        if before or behind:
            found = found[:, before : found.shape[1] - behind].reshape(output.shape)
        assert torch.equal(given, image(batch))
        assert torch.allclose(found, output, rtol=1e-12)
        assert (pulled - gradient).norm() <= 1e-10 * gradient.norm()


@pytest.mark.parametrize("name", WHOLE)
def test_functions_keep_values_and_gradient(name: str) -> None:
    keeps(PullbackModule(capture(Apply(WHOLE[name]), image()), HARD), WHOLE[name])


@functools.cache
def side_by_side() -> tuple[PullbackModule, list[int]]:
    """The pullback of all PARTS in one graph, and how many columns of the output each has."""
    widths = [part(image()).flatten(1).shape[1] for part in PARTS.values()]
    return PullbackModule(capture(Side(list(PARTS.values())), image()), HARD), widths


@pytest.mark.parametrize("name", PARTS)
def test_functions_side_by_side_keep_theirs(name: str) -> None:
    pullback, widths = side_by_side()
    place = list(PARTS).index(name)
    keeps(pullback, PARTS[name], sum(widths[:place]), sum(widths[place + 1 :]))


def test_a_network_that_overwrites_its_input_leaves_the_caller_his() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True)).double()
    graph = rewrite(network, image(), HARD)
    x = image()
    output, pulled = graph(x, torch.ones(4, 3, 4, 4, dtype=torch.float64))
    assert torch.equal(x, image())
    leaf = image().requires_grad_(True)
    expected = network(leaf.clone())
    assert torch.allclose(output, expected)
    assert torch.allclose(pulled, torch.autograd.grad(expected.sum(), leaf)[0])
    targets = {node.target for node in graph.graph.nodes}
    assert aten.clone.default not in targets and aten.copy_.default not in targets


def test_an_input_that_does_not_fit_is_said() -> None:
    with pytest.raises(SurgeonError, match=r"does not take an input of shape 2,6,6, float64 \(.*4 channels"):
        capture(nn.Conv2d(4, 1, 3).double(), image())
    with pytest.raises(SurgeonError, match=r"does not take an input .*dtype"):
        capture(nn.Linear(6, 1), image())


def test_capture_takes_the_mode_of_evaluation_and_gives_it_back() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2)).double().train()
    graph = capture(module, image()).graph
    assert module.training
    assert torch.equal(graph(image()), graph(image()))


def test_the_graph_is_functional_and_complete() -> None:
    captured = capture(build(Stem), example(Stem))
    targets = [node.target for node in captured.graph.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if getattr(target, "_schema", None) and target._schema.is_mutable]
    assert captured.input.op == "placeholder"
    assert captured.outputs[0].target is aten.linear.default
    known = {*RULES, *DERIVED, *CONSTANT}
    assert not [target for target in targets if isinstance(target, torch._ops.OpOverload) and target not in known]


def test_nodes_know_their_module_class_and_line() -> None:
    nodes = capture(build(Stem), example(Stem)).graph.graph.nodes
    (relu,) = (node for node in nodes if node.target is aten.relu.default)
    assert source_module(relu) == "relu"
    assert source_classes(relu)[-1] == "torch.nn.modules.activation.ReLU"
    (mean,) = (node for node in nodes if node.target is aten.mean.dim)
    assert source_module(mean) == ""
    assert source_line(mean).startswith("networks.py:")


@pytest.mark.parametrize("name", ["Stem", "Functional", "Slopes"])
def test_every_node_of_the_pullback_says_where_it_comes_from(name: str) -> None:
    network = NETWORKS[name]
    module = build(network)
    graph = rewrite(module, example(network))
    modules = {name for name, _ in module.named_modules()}
    roles = []
    for node in graph.graph.nodes:
        # Sizes are read where export needs them; nothing of the network computes them.
        if node.op != "call_function" or node.target is aten.sym_size.int:
            continue
        origin = node.meta.get("custom", {}).get("surgeon")
        assert origin is not None, node.format_node()
        assert set(origin) == {"node", "module", "role"}
        assert origin["module"] in modules
        roles.append(origin["role"])
    assert set(roles) == {"forward", "backward"}
    named = {node.meta["custom"]["surgeon"]["module"] for node in graph.graph.nodes if is_sigmoid(node)}
    gates = {"Stem": {"relu"}, "Functional": {"", "module"}, "Slopes": {"leaky", "one", "each"}}
    assert named == gates[name]


def is_sigmoid(node: Node) -> bool:
    return node.target is aten.sigmoid.default


def test_modules_of_another_source_line_are_named_when_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.act(x) - 1)

    pullback = PullbackModule(capture(Twice(), image()), HARD)
    assert [site.module for site in pullback.gates] == ["act", "act"]
    assert len({site.node for site in pullback.gates}) == 2


def test_modules_are_named_where_the_batch_is_taken_for_a_number() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.stage = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.stage(self.act(x)) - 1).reshape(len(x), -1)

    captured = capture(Counted().double(), image())
    assert {"torch.nn.modules.activation.ReLU"} == captured.gate_classes
    pullback = PullbackModule(captured, Recipe(gate_scope="modules"))
    assert [(site.module, site.rule) for site in pullback.gates] == [
        ("act", "soft"), ("stage.1", "soft"), ("act", "soft"),
    ]  # fmt: skip
    (convolution,) = captured.graph.graph.find_nodes(op="call_function", target=aten.convolution.default)
    assert source_module(convolution) == "stage.0"
    (shifted,) = captured.graph.graph.find_nodes(op="call_function", target=aten.sub.Tensor)
    assert source_line(shifted).startswith("test_capture.py:")


class Commonest(nn.Module):
    """An operator without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mode(3).values


class Staged(nn.Module):
    """The same inside a named module."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(2, 2, 1), Commonest()).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x)


class Tokens(nn.Module):
    """A network that takes integers and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


REFUSED: dict[str, tuple[Callable[[Tensor], object] | nn.Module, str]] = {
    "data-dependent flow": (
        lambda x: x if x.sum() > 0 else -x,
        r"cannot record the network with a dynamic batch at test_capture.py:\d+ .*Data-dependent",
    ),
    "a fixed batch": (
        lambda x: x.reshape(4, 72),
        r"cannot record the network with a dynamic batch.* \(it takes it for a fixed number, as a size",
    ),
    "a loop over the samples": (lambda x: torch.stack([each.relu() for each in x]), r"takes it for a fixed number"),
    "two outputs": (lambda x: (x, x + 1), r"Apply returns a tuple of 2: 0 \[N, 2, 6, 6\], 1 \[N, 2, 6, 6\]; .*--at"),
    "a dict": (lambda x: {"out": x, "aux": [x]}, r"Apply returns a dict of 2: out \[N, 2, 6, 6\], aux\.0 \[N, "),
    "no output": (lambda x: None, r"Apply returns a NoneType"),
    "a constant": (lambda x: torch.zeros_like(x), r"does not depend on the input .*: it ends at aten.full_like"),
    "nothing of it": (lambda x: torch.ones(x.shape[0], 3), r"does not depend on the input .*: no value of it is read"),
    "classes": (
        lambda x: x.argmax(1),
        r"does not depend on the input .*: it ends at aten.argmax.default \(argmax, test_capture.py:\d+\)",
    ),
    "everything detached": (lambda x: x.detach() * 2, r"does not depend on the input .*: it ends at aten.detach"),
    "integers alone": (
        Tokens(),
        r"takes integers, which have no gradient \(Embedding embedding reads them\)",
    ),
    "several operators without rule": (
        lambda x: x.mode(3).values + x.mode(3).values + torch.erfinv(x)[..., 0],
        r"no pullback rule for aten.mode.default \(.*\) and 1 more; no pullback rule for aten.erfinv",
    ),
    "a complex way beside a real one": (
        lambda x: x.relu() + torch.fft.fft2(x).abs().relu(),
        r"no pullback rule for aten._fft_c2c.default \(.*\), which computes complex numbers",
    ),
    "a complex way alone": (lambda x: torch.fft.rfft2(x).abs(), r"no pullback rule for aten._fft_r2c.default"),
    "a complex product of the input": (lambda x: (x * (1 + 2j)).abs(), r"aten.mul.Tensor .*, which computes complex"),
    "a complex output": (lambda x: torch.fft.rfft2(x), r"no pullback rule for aten._fft_r2c.default"),
    "noise beside the input": (
        lambda x: x.relu() + torch.randn(x.shape[0], 1, 6, 6),
        r"aten.randn.default \(randn, test_capture.py:\d+\) draws random numbers",
    ),
    "a random factor": (
        lambda x: x * torch.rand(2, 1, 1),
        r"aten.rand.default \(.* draws .* numbers.*--extra-input",
    ),
    "a random choice": (lambda x: x * torch.bernoulli(x.sigmoid()), r"aten.rand.default \(.* draws random numbers"),
    "a sample of classes": (lambda x: F.gumbel_softmax(x, dim=1), r"aten.exponential\S* \(.* draws random numbers"),
    "dropout in training": (lambda x: F.dropout(x), r"aten.native_dropout.default \(.* draws random numbers"),
    "another batch": (lambda x: x.flatten(0, 1), r"which has another batch"),
    "one number": (lambda x: x.sum(), r"which has another batch"),
    "an operator without rule": (
        Staged(),
        r"no pullback rule for aten.mode.default \(\w+ in stage.1, ",
    ),
    "its line": (
        lambda x: x.mode(3).values,
        r"aten.mode.default \(\w+, test_capture.py:\d+\)",
    ),
    "weights that depend on the input": (
        lambda x: F.conv2d(x, x.mean(0, keepdim=True)),
        r"aten.convolution.default \(.*\) depends on the input through mean, for which its rule has no cotangent",
    ),
    "a norm whose scale depends on the input": (
        lambda x: F.batch_norm(x, torch.zeros(2).double(), torch.ones(2).double(), weight=x.mean((0, 2, 3))),
        r"batch_norm.* depends on the input through mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_converted_is_named(name: str) -> None:
    function, message = REFUSED[name]
    module = function if isinstance(function, nn.Module) else Apply(function)
    with pytest.raises(ConversionError, match=message) as raised:
        rewrite(module, image(), HARD)
    assert raised.value.remedy
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 4
