"""Set the default temperature of a finished bundle. Torch-free.

The default stands in the manifest, in each ONNX file (the initializer behind the input `temperature`, and the facts in
its metadata) and in each TorchScript file (a number in its source). A new bundle is written beside the old one, and
replaces it in one move.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import zipfile
from pathlib import Path

import onnx
from onnx import helper

from surgeon.bundle.atomic import staged
from surgeon.bundle.folder import Bundle, seal
from surgeon.bundle.manifest import MANIFEST, Artifact, Manifest
from surgeon.bundle.scalars import check_scalar
from surgeon.errors import SurgeonError

Temperature = float | tuple[float, ...]

_IN_SOURCE = re.compile(r"(torch\.__isnot__\(temperature, None\):.*?torch\.tensor\()([^()]*?)(, dtype=)", re.DOTALL)


def set_temperature(bundle: Bundle, temperature: Temperature) -> Bundle:
    """Write `temperature` into the bundle as its default, and return the bundle, opened again.

    A tuple has one temperature for each of the manifest's gates, for bundles with a temperature per gate. The files are
    checked first; an error leaves the bundle as it was. Raises SurgeonError where no artifact takes a temperature, and
    for values that are no temperatures.
    """
    manifest = with_temperature(bundle.manifest, temperature)
    bundle.check()
    with staged(bundle.path) as folder:
        for name in bundle.manifest.files:
            artifact = manifest.artifacts.get(name)
            if artifact is None or not _takes(artifact):
                shutil.copyfile(bundle.path / name, folder / name)
            elif artifact.format == "onnx":
                _rewrite_onnx(bundle.path / name, folder / name, manifest)
            else:
                _rewrite_torchscript(bundle.path / name, folder / name, manifest.default_temperature)
        seal(folder, manifest)
        for path in bundle.path.iterdir():  # a file that somebody put there stays
            if path.name not in bundle.manifest.files and path.name != MANIFEST:
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)
    return Bundle.open(bundle.path)


def with_temperature(manifest: Manifest, temperature: Temperature) -> Manifest:
    """`manifest` with that default; raises SurgeonError as `set_temperature` does."""
    if not any(map(_takes, manifest.artifacts.values())):
        raise SurgeonError("the bundle takes no temperature: none of its gates is soft, or all are fixed")
    own = isinstance(temperature, tuple)
    values = temperature if isinstance(temperature, tuple) else (temperature,)
    for value in values:
        check_scalar("temperature", value)
    per_gate = manifest.recipe.temperature_input == "per-gate"
    if own and not (per_gate and len(values) == len(manifest.gates)):
        raise SurgeonError(
            "the bundle takes one temperature for all gates", "Export it with --temperature-input per-gate"
        )
    if isinstance(temperature, tuple):
        pairs = zip(manifest.gates, temperature, strict=True)
        gates = tuple(dataclasses.replace(gate, temperature=value) for gate, value in pairs)
        manifest = dataclasses.replace(manifest, gates=gates)
    else:
        free = (dataclasses.replace(gate, temperature=None) if per_gate else gate for gate in manifest.gates)
        defaults = dataclasses.replace(manifest.defaults, temperature=temperature)
        manifest = dataclasses.replace(manifest, gates=tuple(free), defaults=defaults)
    default = manifest.default_temperature
    artifacts = {
        name: dataclasses.replace(
            artifact,
            inputs=tuple(
                dataclasses.replace(port, default=default) if port.name == "temperature" else port
                for port in artifact.inputs
            ),
        )
        for name, artifact in manifest.artifacts.items()
    }
    # The report compares the files as they were exported, so it names the default of that time.
    report = tuple(
        dataclasses.replace(line, condition=line.condition.replace("T default", "T of the export"))
        for line in manifest.verification
    )
    return dataclasses.replace(manifest, artifacts=artifacts, verification=report)


def _takes(artifact: Artifact) -> bool:
    return any(port.name == "temperature" for port in artifact.inputs)


def _rewrite_onnx(source: Path, destination: Path, manifest: Manifest) -> None:
    """The file with another initializer `temperature`, and other facts; weights stay where they are."""
    model = onnx.load(source, load_external_data=False)
    default = manifest.default_temperature
    for initializer in model.graph.initializer:
        if initializer.name == "temperature":
            values = list(default) if isinstance(default, tuple) else [default]
            initializer.CopyFrom(helper.make_tensor("temperature", initializer.data_type, initializer.dims, values))
    for entry in model.metadata_props:
        if entry.key == "surgeon":
            entry.value = manifest.file_facts()
    onnx.save(model, destination)


def _rewrite_torchscript(source: Path, destination: Path, default: Temperature) -> None:
    """The archive with another number in its source; every other entry keeps its bytes and its place.

    Raises SurgeonError where the source does not hold the default as in surgeon's exports.
    """
    text = repr(list(default)) if isinstance(default, tuple) else repr(default)
    replaced = 0
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(destination, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".py"):
                code, count = _IN_SOURCE.subn(lambda found: found[1] + text + found[3], data.decode())
                data, replaced = code.encode(), replaced + count
            new.writestr(entry, data)
    if replaced != 1:
        raise SurgeonError(
            f"{source.name} does not hold its default temperature as expected", "Export the bundle again"
        )
