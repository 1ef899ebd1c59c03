"""The coverage sweep: converts every architecture of sweep.tsv and writes down what happened. `make sweep` runs it.

Each model is built with random weights at a small size and converted in a process of its own. Networks whose
activations are ReLUs alone (classes ReLU, ReLU + SE) are exported with soft gates and verified as any export is: every
artifact under ONNX Runtime against autograd, at batches 1, 2 and 3, at 1e-4. The others are rewritten with hard gates:
in float64 against autograd at 1e-8, then the float32 artifact at 1e-3. Results go to sweep.jsonl as they come, each
with the commit that it is of, so a sweep goes on where it or another stopped; the table in docs/coverage.md is written
from that file. Delete it, or a line of it, to run all or one again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "sweep.jsonl"
TABLE = HERE.parent / "docs" / "coverage.md"

SOFT_CLASSES = ("ReLU", "ReLU + SE")
EXACT_TOLERANCE = 1e-8
ARTIFACT_TOLERANCE = 1e-3
ROUNDING = 5
"""With hard gates the artifact may be this many times as far from float64 as float32 autograd itself is."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of sweep.tsv."""

    source: str  # torchvision, timm
    kind: str  # see the head of this file
    model: str
    shape: tuple[int, ...]  # of one sample
    millions: float  # of parameters

    @property
    def name(self) -> str:
        return f"{self.source} {self.model}"

    @property
    def extra_inputs(self) -> dict[str, tuple[int, ...]]:
        """What it takes beside its input: the second of RAFT's two pictures."""
        return {"image2": self.shape} if self.model.startswith("raft_") else {}


def entries() -> list[Entry]:
    """All of sweep.tsv. A size is the side of a square picture, or "frames,side" of a film."""
    found = []
    with (HERE / "sweep.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            *frames, side = map(int, row["size"].split(","))
            shape = (3, *frames, side, side)
            found.append(Entry(row["source"], row["class"], row["model"], shape, float(row["million_parameters"])))
    return found


# ---- One model, in a process of its own. What needs torch is imported there.


def convert(entry: Entry) -> dict[str, Any]:
    """Build, convert and compare. Returns the figures; raises what goes wrong."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = build(entry)
    if entry.kind in SOFT_CLASSES:
        return soft(entry, module)
    return exact(entry, module)


def build(entry: Entry) -> Any:
    """The network with random weights, calibrated, in evaluation mode; what it returns is cut to one tensor."""
    import torch

    from surgeon.network.inputs import with_extra_inputs
    from surgeon.network.weights import CALIBRATION_BATCH, calibrate

    module = _one_tensor(_timm(entry.model) if entry.source == "timm" else _torchvision(entry), entry.extra_inputs)
    module.eval().requires_grad_(False)
    vary(module)
    with with_extra_inputs(module, [torch.rand(CALIBRATION_BATCH, *shape) for shape in entry.extra_inputs.values()]):
        calibrate(module, entry.shape, 0)
    return module


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False)


def _torchvision(entry: Entry) -> Any:
    import inspect

    from torchvision import models

    namespaces = (models, models.segmentation, models.video, models.optical_flow)
    name = entry.model
    if name.startswith("quantized_"):
        name, namespaces = name.removeprefix("quantized_"), (models.quantization,)
    factory = next(getattr(space, name) for space in namespaces if hasattr(space, name))
    options: dict[str, Any] = {"weights": None}
    if "init_weights: bool" in inspect.getsource(inspect.getmodule(factory)):
        options["init_weights"] = False  # theirs takes a minute
    if "segmentation" in factory.__module__:
        options["weights_backbone"] = None
    if not name.startswith("mvit_"):
        return factory(**options)
    # Made for films of one size, which their factories fix.
    make, sizes = models.video.mvit._mvit, {"temporal_size": entry.shape[1], "spatial_size": entry.shape[2:]}
    with patch.object(models.video.mvit, "_mvit", lambda **given: make(**given | sizes)):
        return factory(**options)


def _one_tensor(module: Any, extra_inputs: dict[str, Any]) -> Any:
    from torch import Tensor, nn

    class First(nn.Module):
        """The first tensor of what a network returns: segmentation networks return a dict, some others a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Tensor) -> Tensor:
            output = self.network(x)
            while not isinstance(output, Tensor):
                output = next(iter(output.values() if isinstance(output, dict) else output))
            return output

    class Flow(nn.Module):
        """The last of the flows that RAFT returns, which it refines one from another."""

        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
            return self.network(image1, image2)[-1]

    return Flow() if extra_inputs else First()


def vary(module: Any) -> None:
    """Random values in the place of constant ones: gates of zero, layer scales of 1e-6 and ones prove nothing."""
    for parameter in module.parameters():
        if (parameter == parameter.flatten()[0]).all():
            parameter.uniform_(0.2, 0.8)


def soft(entry: Entry, module: Any) -> dict[str, Any]:
    """Export with soft gates; `surgeon.export` verifies. The figure is the worst pullback's."""
    from surgeon.bundle.manifest import Model, Recipe
    from surgeon.exporting import export
    from surgeon.network.sources import Source

    model = Model(entry.model, entry.source, "random", "none (random weights)", int(entry.millions * 1e6))
    source = Source(module, entry.shape, None, None, model, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        lines = export(source, Path(folder) / "bundle", Recipe(), formats=("onnx",)).manifest.verification
    pullbacks = [line.error for line in lines if line.quantity == "pullback" and line.artifact == "pullback.onnx"]
    return {"artifact": max(pullbacks)}


def exact(entry: Entry, module: Any) -> dict[str, Any]:
    """Hard gates: float64 through `surgeon.rewrite`, then the float32 artifact, both at a batch that was not traced."""
    import torch
    import torch.nn.functional as F

    import surgeon
    from surgeon.bundle.manifest import Recipe
    from surgeon.network.weights import varied_input
    from surgeon.verify.verify import relative_error

    recipe = Recipe(gate="hard", pool="hard")
    generator = torch.Generator().manual_seed(1)
    x, *extra_inputs = given = [
        varied_input(3, shape, generator) for shape in (entry.shape, *entry.extra_inputs.values())
    ]
    with torch.no_grad():
        v = torch.randn(module(*given).shape, generator=generator)

    @torch.enable_grad()
    def gradient(x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(module(x.clone(), *(y.to(x.dtype) for y in extra_inputs)), x, v.to(x.dtype))
        return found

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"input_shape": entry.shape, "extra_inputs": entry.extra_inputs}
        surgeon.export(module, folder + "/bundle", recipe, formats=("onnx",), check=False, **options)
        with_extra_inputs = {name: y.numpy() for name, y in zip(entry.extra_inputs, extra_inputs, strict=True)}
        session = surgeon.load(folder + "/bundle")
        artifact = torch.from_numpy(session.pullback(x.numpy(), v.numpy(), extra_inputs=with_extra_inputs).pullback)
    single = gradient(x)
    module.double()
    # RAFT makes its coordinates with Tensor.float, and then mixes dtypes; others round in the middle.
    with patch.object(torch.Tensor, "float", torch.Tensor.double), torch.no_grad():
        # PyTorch's derivative of hardsigmoid is the float32 next to 1/6, in float64 as well.
        with patch.object(torch.nn.functional, "hardsigmoid", lambda x, inplace=False: F.relu6(x + 3) / 6):
            expected = gradient(x.double())
        graph = surgeon.rewrite(module, tuple(value[:2].flip(-1).double() for value in given), recipe)
        pulled = graph(x.double(), v.double(), *(y.double() for y in extra_inputs))
    figures = {
        "exact": relative_error(pulled[1], expected),
        "artifact": relative_error(artifact, expected),
        "autograd": relative_error(single, expected),  # float32's own distance from float64
    }
    if figures["exact"] > EXACT_TOLERANCE:
        raise AssertionError(f"in float64 the pullback is {figures['exact']:.1e} off autograd's gradient")
    if figures["artifact"] > max(ARTIFACT_TOLERANCE, ROUNDING * figures["autograd"]):
        raise AssertionError(
            f"the artifact is {figures['artifact']:.1e} off the gradient, float32 autograd {figures['autograd']:.1e}"
        )
    return figures


def _worker(entry: Entry, answers: Connection) -> None:
    warnings.simplefilter("ignore")  # timm's and the exporter's own
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    started = time.monotonic()
    try:
        answer = {"passed": True, **convert(entry)}
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        answer = {"passed": False, "reason": f"{type(error).__name__}: {line}"}
    answer["seconds"] = round(time.monotonic() - started)
    answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    answers.send(answer)


# ---- All of them.


def attempt(entry: Entry, timeout: float) -> dict[str, Any]:
    """The result for one entry; a process that takes too long, or dies, is a failure with that reason."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(entry, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(timeout) else {"passed": False, "reason": f"over {timeout:.0f} s"}
    except EOFError:
        process.join()
        answer = {"passed": False, "reason": f"its process ended with {process.exitcode}: out of memory, most likely"}
    process.join(5)
    process.kill()
    process.join()
    return {"source": entry.source, "model": entry.model, **answer, "commit": commit()}


def commit() -> str:
    """Of the code that runs."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return asked.stdout.strip()


def sweep(chosen: Sequence[Entry], results: Path, jobs: int, timeout: float) -> None:
    """Attempt all of `chosen`, `jobs` at a time, and append each result to `results`."""
    preloaded = [
        "torchvision",
        "timm",
        "onnxruntime",
        "surgeon.runtime.session",
        "surgeon.verify.verify",
        "tests.sweep_warm",
    ]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
    results.parent.mkdir(parents=True, exist_ok=True)
    writing = threading.Lock()
    done = 0

    def run(entry: Entry) -> None:
        nonlocal done
        result = attempt(entry, timeout)
        with writing, results.open("a") as file:
            done += 1
            file.write(json.dumps(result) + "\n")
            outcome = f"{result['artifact']:.1e}" if result["passed"] else result["reason"]
            print(f"[{done}/{len(chosen)}] {entry.name}: {outcome} ({result.get('seconds', timeout)} s)", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(run, entry) for entry in chosen]:
            future.result()


def recorded(results: Path) -> dict[str, dict[str, Any]]:
    """What `results` holds, by name; the last line on a model counts."""
    if not results.is_file():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {f"{line['source']} {line['model']}": line for line in lines}


def table(listed: Iterable[Entry], found: dict[str, dict[str, Any]]) -> str:
    """The text of docs/coverage.md."""
    import torch

    listed = list(listed)
    ran = [entry for entry in listed if entry.name in found]
    failed = [entry for entry in ran if not found[entry.name]["passed"]]
    groups = list(dict.fromkeys((entry.source, entry.kind) for entry in listed))
    lines = [
        "# Architectures that convert",
        "",
        "Written by `make sweep` (`tests/sweep.py`, which says what is checked; `tests/sweep.tsv` is the list). Random",
        f"weights, small inputs, PyTorch {torch.__version__.partition('+')[0]}. Errors are relative L2, of the ONNX",
        "pullback under ONNX Runtime: with soft gates against the autograd oracle at batches 1 and 3 (1e-4 allowed)",
        "for the classes ReLU and ReLU + SE (squeeze-excite); with hard gates, that is the true gradient, against",
        "float64 autograd at batch 3 (1e-3 allowed, or 5 times the distance of float32 autograd, where gates flip) for",
        "the others, which besides agree in float64 to 1e-8.",
        "",
        "The commit is that of the code that ran. Not in the list: detection networks, which depend on the data.",
        "",
        "| source | class | listed | run | passed | largest error |",
        "|---|---|---|---|---|---|",
    ]
    for source, kind in groups:
        members = [entry for entry in listed if (entry.source, entry.kind) == (source, kind)]
        tried = [found[entry.name] for entry in members if entry.name in found]
        passed = [result for result in tried if result["passed"]]
        largest = f"{max(result['artifact'] for result in passed):.1e}" if passed else ""
        lines.append(f"| {source} | {kind} | {len(members)} | {len(tried)} | {len(passed)} | {largest} |")
    lines += ["", "## Failures", ""]
    lines += [f"- {entry.name}: {found[entry.name]['reason']}" for entry in failed] or ["None."]
    lines += ["", "## Not run yet", ""]
    missing = [f"{entry.name} ({entry.millions:g} M)" for entry in listed if entry.name not in found]
    lines += [", ".join(missing) + "." if missing else "None."]
    heads = ("model", "class", "parameters, M", "input", "error", "commit")
    lines += ["", "## Passed", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in ran:
        result, shape = found[entry.name], "×".join(map(str, entry.shape))
        if result["passed"]:
            cells = (
                entry.name,
                entry.kind,
                f"{entry.millions:g}",
                shape,
                f"{result['artifact']:.1e}",
                result["commit"],
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="these alone, by name (all of sweep.tsv)")
    parser.add_argument("--largest", type=float, default=60, metavar="M", help="million parameters at most (60)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for one model (900)")
    parser.add_argument("--retry", action="store_true", help="run those again that failed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that results are appended to")
    given = parser.parse_args()
    listed, found = entries(), recorded(given.results)
    unknown = set(given.models) - {entry.model for entry in listed}
    if unknown:
        parser.error(f"sweep.tsv has no {', '.join(sorted(unknown))}")
    chosen = [
        entry
        for entry in listed
        if entry.millions <= given.largest
        and (not given.models or entry.model in given.models)
        and (entry.name not in found or (given.retry and not found[entry.name]["passed"]))
    ]
    print(f"{len(chosen)} models to run; {len(found)} are recorded in {given.results}", flush=True)
    sweep(chosen, given.results, given.jobs, given.timeout)
    found = recorded(given.results)
    TABLE.write_text(table(listed, found))
    failed = sum(not result["passed"] for result in found.values())
    print(f"{len(found) - failed} passed, {failed} failed; see {TABLE.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
