from __future__ import annotations

import json
import statistics

import click
import numpy
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from surgeon import cli
from surgeon.analysis.bench import baselines as baselines
from surgeon.analysis.bench import benchmark, eager, memory, profiling
from surgeon.analysis.bench import candidates as candidates
from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import Recipe
from surgeon.cli import bench
from surgeon.errors import SurgeonError, VerificationError
from surgeon.runtime import system_info as machines
from surgeon.verify.oracle import reference as oracle
from tests import cuda_graphs
from tests.digits import digits
from tests.networks import NETWORKS, build
from tests.tiny_bundle import SIDE, write_tiny
from tests.tiny_network import tiny

TINY = "tests.tiny_network:tiny"
RECIPES = {
    "soft": Recipe(),
    "both edges": Recipe(edges="both"),
    "modules": Recipe(gate_scope="modules"),
    "guided": Recipe(gate="guided", pool="hard"),
    "deconvnet": Recipe(gate="deconvnet", pool="hard"),
    "hard": Recipe(gate="hard", pool="hard"),
}


def other() -> nn.Module:
    network = tiny()
    network[3].weight.data.mul_(1.01)
    return network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def surgeon(capfd):
    def call(*arguments):
        code = cli.invoke([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def relative(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_eager_is_the_oracle_only_faster(name, recipe):
    module = build(NETWORKS[name])
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, *module.input_shape), generator=generator, dtype=torch.float64)
    output, pullback = oracle.reference_pullback(
        module, x, torch.ones((), dtype=torch.float64), recipe=recipe, temperature=0.3
    )
    in_place = name == "Functional"  # it drops what its ReLU in place returns
    network = eager.network(module, recipe, 0.3, in_place=in_place)
    found = eager.pull(network, x, torch.ones_like(output))
    assert relative(found[0], output) < 1e-12
    assert relative(found[1], pullback) < 1e-12


@pytest.mark.parametrize("name", ["Stem", "Slopes", "Clamps"])
def test_eager_compiles_in_one_piece(name):
    module = build(NETWORKS[name])
    x = torch.randn((2, *module.input_shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    network = eager.network(module, Recipe(), 0.3)
    expected = eager.pull(network, x, torch.ones((2, 5), dtype=torch.float64))
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    found = eager.pull(compiled, x, torch.ones((2, 5), dtype=torch.float64))
    assert relative(found[1], expected[1]) < 1e-12


def test_candidates_take_turns_and_the_warm_up_does_not_count():
    ran, now = [], [0.0]

    def candidate(name, seconds, passes=1):
        def run():
            ran.append(name)
            now[0] += seconds

        return benchmark.Candidate(name, run, passes)

    three = [candidate("a", 1.0), candidate("b", 10.0, passes=5), candidate("c", 3.0)]
    turns = list(benchmark.turns(three, repeats=3, warm_up=2, pause=0, clock=lambda: now[0]))
    assert ran == ["a", "b", "c"] * 5
    assert turns == [{"a": 1.0, "b": 2.0, "c": 3.0}] * 3


def test_ratios_are_to_two_forward_passes_of_the_same_turn():
    took = [(1.0, 3.0), (2.0, 5.0), (4.0, 8.0)]
    forward, pullback = benchmark.timings([{"forward": first, "pullback": second} for first, second in took])
    assert forward.ratios == (0.5, 0.5, 0.5)
    assert pullback.ratios == (1.5, 1.25, 1.0)
    assert (pullback.median, pullback.ratio) == (5.0, 1.25)
    assert pullback.quartiles == tuple(statistics.quantiles((3.0, 5.0, 8.0), n=4, method="inclusive")[::2])
    (alone,) = benchmark.timings([{"pullback": 3.0}])
    assert (alone.ratio, alone.ratio_quartiles, alone.quartiles) == (None, None, (3.0, 3.0))


def test_benchmark_times_everyone_at_every_batch_size(bundle):
    told = []
    report = benchmark.benchmark(
        bundle,
        against=("eager", "forward"),
        batches=(1, 3),
        threads=1,
        steps=2,
        repeats=2,
        warm_up=0,
        source=TINY,
        progress=lambda doing, share: told.append((doing, share)),
    )
    assert [round.batch for round in report.rounds] == [1, 3]
    for round in report.rounds:
        assert [timing.name for timing in round.timings] == ["forward", "pullback", "ascent", "eager"]
        assert all(len(timing.seconds) == 2 and min(timing.seconds) > 0 for timing in round.timings)
        assert all(timing.ratio is not None for timing in round.timings)
    assert (report.model, report.gate, report.steps, report.machine.threads) == ("tiny", "soft", 2, 1)
    assert ("batch 3: eager, turn 2 of 2", 0.75) in told
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_torch_gets_its_threads_back(bundle):
    before = torch.get_num_threads()
    benchmark.benchmark(bundle, against=("eager",), threads=before + 1, repeats=1, warm_up=0, source=TINY)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("baseline", ["forward", "eager"])
def test_an_baseline_that_computes_something_else_is_not_timed(bundle, baseline):
    with pytest.raises(VerificationError, match="times do not compare"):
        benchmark.benchmark(bundle, against=(baseline,), repeats=1, source="tests.analysis.test_benchmark:other")


def test_without_a_compiler_the_others_go_on(bundle, surgeon, monkeypatch):
    def compile(network, **_):
        def fail(x):
            raise RuntimeError("no C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(baselines.torch, "compile", compile)
    few = ("--repeats", 1, "--warm-up", 0, "--source", TINY)
    code, out, err = surgeon("bench", bundle, "--against", "eager,compile", *few)
    assert (code, err) == (0, "")
    assert "compile was left out: torch.compile failed (no C++ compiler)" in out
    assert "eager" in out and "pullback" in out
    assert "ratios to 2 x forward need --against forward" in out


def test_bench_prints_a_table_and_names_the_machine(bundle, surgeon):
    code, out, err = surgeon("bench", bundle, "--repeats", 3, "--threads", 1, "--steps", 4, "--source", TINY)
    assert (code, err) == (0, "")
    assert "ratio to 2 x forward" in out and "ascent, per step of 4" in out
    assert machines.processor() in out and "1 threads" in out and f"torch {torch.__version__.partition('+')[0]}" in out


def test_bench_json_is_one_object(bundle, surgeon):
    code, out, err = surgeon("bench", bundle, "--repeats", 2, "--batch", "2,1", "--source", TINY, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert [round["batch"] for round in report["rounds"]] == [2, 1]
    forward, pullback, ascent = report["rounds"][0]["timings"]
    assert [forward["name"], pullback["name"], ascent["name"]] == ["forward", "pullback", "ascent"]
    expected = statistics.median(p / (2 * f) for p, f in zip(pullback["seconds"], forward["seconds"], strict=True))
    assert pullback["ratio"] == pytest.approx(expected)
    assert pullback["median"] == pytest.approx(statistics.median(pullback["seconds"]))
    assert report["machine"]["versions"]["onnxruntime-gpu"] or report["machine"]["versions"]["onnxruntime"]


def test_memory_is_that_of_session_and_run(tmp_path):
    path, given = tmp_path / "expanded.onnx", {"x": numpy.ones(1, numpy.float32)}
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["y"]), helper.make_node("ReduceSum", ["y"], ["z"], keepdims=0)],
        "expanded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [])],
        [helper.make_tensor("shape", TensorProto.INT64, [1], [50_000_000])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    # Bytes of y, which ONNX Runtime's arena takes in another place for the second run, and what a session needs.
    assert 400e6 < memory.peak(path, given, threads=1, at_once=1) < 460e6
    path.write_bytes(b"nothing")
    with pytest.raises(SurgeonError, match="could not be measured"):
        memory.peak(path, given, threads=1, at_once=1)


def test_a_profile_divides_one_sum_by_operator_and_by_layer():
    bundle = Bundle.open("exported/digits")
    found = profiling.profile(bundle, benchmark.feeds(bundle, 2), threads=1, repeats=3)
    assert found.batch == 2
    for shares in (found.operators, found.layers, found.providers):
        assert sum(share.seconds for share in shares) == pytest.approx(found.seconds)
        assert [share.seconds for share in shares] == sorted((share.seconds for share in shares), reverse=True)
    operators, layers = ({share.name: share for share in shares} for shares in (found.operators, found.layers))
    assert {"Conv", "Mul", "Relu"} <= set(operators)
    assert operators["Mul"].nodes >= 3  # one for each ReLU; the sigmoids are part of convolutions
    # Convolutions that ONNX Runtime renamed for its blocked layout are found again.
    assert {"features.0, forward", "features.0, backward", "features.3, backward"} <= set(layers)
    modules = {name for name, _ in digits().named_modules() if name}
    own = {f"{module}, {role}" for module in (*modules, profiling.NO_MODULE) for role in ("forward", "backward")}
    assert set(layers) <= own | {profiling.RUNTIME, profiling.NO_MODULE}


def test_bench_shows_the_profile(bundle, surgeon):
    code, out, err = surgeon("bench", "exported/digits", "--against", "none", "--repeats", 1, "--profile")
    assert (code, err) == (0, "")
    assert "pullback, batch 1, by operator" in out and "by layer" in out and "features.3, backward" in out
    code, out, err = surgeon("bench", bundle, "--against", "none", "--repeats", 1, "--profile", "--json")
    (round,) = json.loads(out)["rounds"]
    assert code == 0 and round["profile"]["operators"][0]["nodes"] > 0
    assert all(timing["peak_bytes"] > 0 for timing in round["timings"])


def test_where_torch_is_missing_the_artifacts_are_timed_alone(bundle, surgeon, monkeypatch):
    monkeypatch.setattr(benchmark, "torch_is_installed", lambda: False)
    code, out, _ = surgeon("bench", bundle, "--repeats", 1)
    assert code == 0 and "pullback" in out and "need --against forward, and torch" in out
    code, out, err = surgeon("bench", bundle, "--repeats", 1, "--against", "forward")
    assert (code, out) == (1, "") and "needs torch, which is not installed" in err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--against", "forwards"), 2, "'forwards' is not one of 'forward', 'eager', 'compile'"),
        (("--against", "none,eager"), 2, "'none' is not one of"),
        (("--batch", "1,0"), 2, "0 is not in the range x>=1"),
        (("--repeats", "0"), 2, "--repeats"),
        (("--device", "cuda"), 5, "the device 'cuda' is not there"),
    ],
)
def test_what_cannot_be_timed_is_one_line(bundle, surgeon, arguments, code, told):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("the device is there")
    found, out, err = surgeon("bench", bundle, *arguments)
    assert (found, out) == (code, "")
    assert told in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("load", "threads", "busy"), [(0.4, 2, False), (1.2, 1, False), (1.2, 2, True), (None, 2, False)]
)
def test_a_busy_machine_is_noticed(load, threads, busy):
    assert machines.Machine("AMD", 2, threads, "Linux", "cpu", load, {}).busy is busy


def test_benchmark_refuses_what_makes_no_sense(bundle):
    for settings in ({"against": ("both",)}, {"batches": (0,)}, {"batches": ()}, {"repeats": 0}, {"steps": 0}):
        with pytest.raises(SurgeonError):
            benchmark.benchmark(bundle, **settings)


def test_feeds_are_in_range_and_one_hot(bundle):
    given = benchmark.feeds(benchmark.load(bundle).bundle, 4)
    assert given["input"].shape == (4, 3, SIDE, SIDE) and given["input"].dtype == numpy.float32
    assert numpy.abs(given["input"]).max() <= 1
    assert given["cotangent"].shape == (4, 5) and (given["cotangent"].sum(1) == 1).all()


@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_steps_where_the_state_stays(bundle, monkeypatch, graphs):
    made = cuda_graphs.pretend(monkeypatch)
    given = {"enable_cuda_graph": "1"} if graphs else {"device_id": 0}
    report = benchmark.benchmark(
        bundle, against=("forward",), device=cuda_graphs.GPU, provider_options=given, repeats=2, source=TINY
    )
    (found,) = report.rounds
    names = [timing.name for timing in found.timings]
    assert names == ["forward", "pullback", *([] if graphs else ["ascent"]), "steps"]
    assert list(found.skipped) == (["ascent"] if graphs else [])
    assert len(made) == (3 if graphs else 0) and all(session.captured for session in made)
    facts = report.to_json()
    assert facts["provider_options"] == {key: str(value) for key, value in given.items()}
    assert facts["off_device"]["pullback.onnx"] and not any(facts["fallback"].values())


def test_bench_says_which_options_were_used(bundle, monkeypatch, surgeon):
    cuda_graphs.pretend(monkeypatch)
    device = next(parameter for parameter in bench.command.params if parameter.name == "device")
    monkeypatch.setattr(device, "type", click.STRING)
    where = ("--device", cuda_graphs.GPU, "--provider-option", "enable_cuda_graph=1")
    code, out, err = surgeon("bench", bundle, "--against", "none", "--repeats", 2, *where)
    assert code == 0, err
    assert "ONNX Runtime's provider has enable_cuda_graph=1" in out
    assert "ascent was left out: it is a loop, and a CUDA graph holds none" in out
    assert "ascent_step, its state on the GPU" in out


def test_what_is_left_to_another_provider_is_shown(bundle, monkeypatch, surgeon):
    monkeypatch.setattr(candidates.LoadedArtifact, "fallback", property(lambda self: ("Conv (a)",)))
    code, out, err = surgeon("bench", bundle, "--against", "none", "--repeats", 1)
    assert code == 0, err
    assert "pullback.onnx: 1 nodes are left to CUDA: Conv (a)" in out


def test_a_candidate_that_fails_is_an_error(bundle, monkeypatch):
    def failing(*_):
        raise RuntimeError("out of memory\nat such a place")

    cuda_graphs.pretend(monkeypatch)
    monkeypatch.setattr("surgeon.runtime.binding._BufferSet.run", failing)
    with pytest.raises(SurgeonError, match=r"pullback.onnx does not run \(out of memory\)"):
        benchmark.benchmark(bundle, device=cuda_graphs.GPU, repeats=1)
