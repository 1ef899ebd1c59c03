"""Baselines that an artifact is timed against: the network's plain ONNX export, and the same pullback by autograd.

A baseline is timed only where its values equal the artifact's.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy
import torch
from torch import Tensor, nn

from surgeon.analysis.bench import eager
from surgeon.analysis.bench.candidates import Candidate, LoadedArtifact, Unavailable
from surgeon.bundle.manifest import Manifest
from surgeon.bundle.units import Array
from surgeon.conversion.writers.translation import export_plain
from surgeon.errors import ProviderError, SurgeonError, VerificationError, first_line
from surgeon.network.sources import resolve_again
from surgeon.runtime.providers import Device
from surgeon.verify.cases import comparable, input_shape
from surgeon.verify.oracle import reference as oracle
from surgeon.verify.verify import HALF_TOLERANCE, HARD_TOLERANCE, OUTPUT_TOLERANCE, SOFT_TOLERANCE, relative_error


class Forward(nn.Module):
    """A network up to the layers that take the cotangent: the forward pass that the pullback contains."""

    def __init__(self, network: nn.Module, at: Sequence[str]) -> None:
        super().__init__()
        self.network, self._at = network, at

    def forward(self, input: Tensor) -> Tensor:
        return oracle.forward(self.network, input, self._at)


class Baselines:
    """The baselines `names` of the bundle that `manifest` describes; as a context, it sets torch's threads and TF32.

    Raises ProviderError where PyTorch cannot use `device`, SurgeonError where the network cannot be found.
    """

    def __init__(
        self,
        manifest: Manifest,
        names: Sequence[str],
        folder: Path,
        device: Device,
        threads: int,
        source: str | None = None,
        weights: str | None = None,
    ) -> None:
        if device.memory == "cuda" and not torch.cuda.is_available() and set(names) - {"forward"}:
            raise ProviderError(
                f"the device {device.name!r} is not there for PyTorch",
                "Install PyTorch with CUDA, or give --against forward",
            )
        if manifest.extra_inputs:
            raise SurgeonError(
                "baselines take one input, and the bundle's network takes several", "Give --against none"
            )
        self.names = tuple(dict.fromkeys(names))
        self._folder, self._device, self._threads = folder, device, threads
        self._place = torch.device(device.memory, device.index)
        self._dtype = torch.float16 if manifest.recipe.precision == "fp16" else torch.float32
        network = resolve_again(manifest, source=source, weights=weights).module
        network, recipe = comparable(network, manifest.recipe, torch.zeros(2, *input_shape(manifest)))
        self._manifest = dataclasses.replace(manifest, recipe=recipe)
        self._module = network.to(self._dtype)
        self._plain: LoadedArtifact | None = None
        self._settings = (torch.get_num_threads(), *_tf32())

    def __enter__(self) -> Baselines:
        torch.set_num_threads(self._threads)
        _allow_tf32(self._device.tf32, self._device.tf32)  # as the artifact's provider has it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        threads, *tf32 = self._settings
        _allow_tf32(*tf32)
        torch.set_num_threads(threads)

    def candidate(self, name: str, inputs: dict[str, Array], output: Array, pullback: Array) -> Candidate:
        """The baseline `name` doing one pass on `inputs`, checked against the artifact's values.

        Raises VerificationError where they differ, Unavailable where the baseline cannot take part.
        """
        if name == "forward":
            return self._forward(inputs, output)
        input, cotangent = (
            torch.from_numpy(inputs[key]).to(self._place, self._dtype) for key in ("input", "cotangent")
        )
        network = self._eager(input, cotangent, pullback)
        if name == "compile":
            network = _compiled(network, input, cotangent)
        values = eager.pull(network, input, cotangent)
        for quantity, value, expected in zip(("output", "pullback"), values, (output, pullback), strict=True):
            self._check(f"{name}'s {quantity}", _array(value), expected, self._tolerance(quantity))

        def run() -> None:
            eager.pull(network, input, cotangent)
            if self._device.memory == "cuda":
                torch.cuda.synchronize()

        return Candidate(name, run)

    def _forward(self, inputs: dict[str, Array], output: Array) -> Candidate:
        if self._plain is None:
            self._plain = self._export_plain(inputs["input"])
        precise = {"input": inputs["input"].astype(numpy.float16 if self._dtype == torch.float16 else numpy.float32)}
        (values,) = self._plain.values(precise).values()
        self._check("the plain export's output", values, output, self._tolerance("output"))
        return self._plain.candidate("forward", precise)

    def _export_plain(self, input: Array) -> LoadedArtifact:
        path, recipe = self._folder / "forward.onnx", self._manifest.recipe
        example = torch.from_numpy(input[:1]).to(self._dtype).expand(2, *input.shape[1:])
        try:
            with torch.no_grad():
                export_plain(Forward(self._module.cpu(), recipe.at), example, path, recipe.opset)
        except OSError as error:
            raise SurgeonError(
                f"the plain export cannot be written to {self._folder} ({error.strerror or error})",
                "Free some space there, or set TMPDIR",
            ) from error
        return LoadedArtifact.open(path, self._device, self._threads)

    def _eager(self, input: Tensor, cotangent: Tensor, pullback: Array) -> eager.Network:
        """Without operators in place, which is faster, if the values are right; else as the author wrote it."""
        if self._manifest.recipe.temperatures:
            raise Unavailable("PyTorch's way has one temperature for all gates, and the bundle has several")
        module, temperature = self._module.to(self._place), self._manifest.defaults.temperature
        fast = eager.network(module, self._manifest.recipe, temperature)
        computed = _array(eager.pull(fast, input, cotangent)[1])
        if _error(computed, pullback) <= self._tolerance("pullback"):
            return fast
        return eager.network(module, self._manifest.recipe, temperature, in_place=True)

    def _tolerance(self, quantity: str) -> float:
        recipe = self._manifest.recipe
        if "fp16" in (recipe.precision, recipe.weights_dtype) or self._device.tf32:
            return HALF_TOLERANCE
        if quantity == "output":
            return OUTPUT_TOLERANCE
        exact = all(gate.soft for gate in self._manifest.gates)
        cold = max(1.0, 0.1 / self._manifest.defaults.temperature)
        return min(HARD_TOLERANCE, SOFT_TOLERANCE * cold) if exact else HARD_TOLERANCE

    def _check(self, what: str, values: Array, expected: Array, tolerance: float) -> None:
        error = _error(values, expected)
        if error > tolerance:
            raise VerificationError(
                f"{what} is off the bundle's by {error:.1e} ({tolerance:.0e} allowed), so their times do not compare",
                "Say with --source and --weights which network the bundle holds, or `surgeon verify` it",
            )


def _tf32() -> tuple[bool, bool]:
    """Whether PyTorch's convolutions and its matrix products may use TF32."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def _allow_tf32(convolutions: bool, products: bool) -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def _array(values: Tensor) -> Array:
    return values.cpu().numpy()


def _error(values: Array, expected: Array) -> float:
    return relative_error(torch.from_numpy(values), torch.from_numpy(expected))


def _compiled(network: eager.Network, input: Tensor, cotangent: Tensor) -> eager.Network:
    """`network` by torch.compile, for this batch size alone, compiled now."""
    torch.compiler.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
    try:
        with _silent():
            eager.pull(compiled, input, cotangent)
    except Exception as error:  # dynamo, inductor, the C++ compiler and triton share no exception
        reason = first_line(error)
        raise Unavailable(f"torch.compile failed ({reason.rstrip('.')})") from error
    return compiled


@contextmanager
def _silent() -> Iterator[None]:
    """Silence torch.compile's warnings and advice, but not its errors."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
