"""The ports, structure and facts of a bundle or an ONNX file; no weights are read, nothing is run. Torch-free."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.bundle.folder import Bundle
from surgeon.bundle.manifest import MANIFEST, GateSite, Manifest, Port
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    import onnx

    from surgeon.analysis.inspect.grouping import Pair
    from surgeon.analysis.inspect.shape_inference import Shape
    from surgeon.analysis.inspect.structure import Structure

SECTIONS = ("overview", "ports", "layers", "nodes", "gates", "operators", "classes", "verification")
"""The sections that can be shown, in order."""

PICTURED = "pullback.onnx"
"""The artifact of a bundle whose layers and nodes are shown; without it, the first ONNX file."""


@dataclass(frozen=True)
class FileReport:
    """One file: its inputs and outputs unless it holds weights alone, and its structure if it is an ONNX file."""

    name: str
    bytes: int
    format: str  # onnx, torchscript, or "" for weights
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    opset: int | None = None
    producer: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)  # without surgeon's own facts
    _read: Callable[[], Structure] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def is_onnx(self) -> bool:
        """Whether the file is an ONNX model, and has a structure."""
        return self._read is not None

    @functools.cached_property
    def structure(self) -> Structure | None:
        """The nodes of an ONNX file; read when asked for, since shape inference takes most of the time."""
        return self._read() if self._read is not None else None


@dataclass(frozen=True)
class OperatorCount:
    """All nodes of one operator in a file."""

    operator: str
    counts: dict[str, int]  # by role
    providers: dict[str, str | None]  # by key of `kernels.PROVIDERS`: see `kernels.support`; the worst of its nodes


@dataclass(frozen=True)
class Inspection:
    """The description of a bundle or of one ONNX file.

    `manifest` is the bundle's, or the facts that surgeon wrote into the file (without files and verification); None
    for an ONNX file from elsewhere. `facts` is `manifest` as plain data.
    """

    path: str
    files: tuple[FileReport, ...]
    facts: dict[str, Any]
    manifest: Manifest | None = None

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def pictured(self) -> FileReport | None:
        """The file whose layers and nodes are shown; None where no file is ONNX."""
        onnx_files = [file for file in self.files if file.is_onnx]
        first = onnx_files[0] if onnx_files else None
        return next((file for file in onnx_files if file.name == PICTURED), first)

    @property
    def gates(self) -> tuple[GateSite, ...]:
        """Gates and pools; none for a file from elsewhere."""
        return self.manifest.gates if self.manifest is not None else ()

    def pairs(self, pattern: str | None = None) -> tuple[Pair, ...]:
        """The nodes of `pictured`, forward beside backward, whose module or name matches `pattern`.

        Raises SurgeonError where no file is ONNX, or nothing matches.
        """
        from surgeon.analysis.inspect.grouping import named, pairs

        file = self.pictured
        if file is None or file.structure is None:
            raise SurgeonError(f"{self.path} holds no ONNX file", "Export it with --formats onnx")
        candidates = pairs(file.structure, self.gates)
        names = [{pair.source, *(node.name for node in (*pair.forward, *pair.backward))} for pair in candidates]
        matching = [pair for pair, known in zip(candidates, names, strict=True) if named(pattern, pair.module, known)]
        if pattern is not None and not matching:
            raise nothing_fits(pattern, [pair.module or pair.source for pair in candidates])
        return tuple(matching)


def nothing_fits(pattern: str, names: Iterable[str]) -> SurgeonError:
    """The error for a pattern that no module or node matches."""
    there = list(dict.fromkeys(names))
    shown = ", ".join(there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
    return SurgeonError(f"no module or node is called {pattern!r}", f"There are {shown}" if there else "There is none")


def inspect(path: str | Path, input_shape: Shape = ()) -> Inspection:
    """Describe the bundle folder or ONNX file at `path`; a bundle's files are checked against its manifest first.

    `input_shape`, of one sample of the first input, replaces free sizes by numbers; without it, photos have the size in
    the bundle's manifest. Raises SurgeonError where there is no bundle and no file, or it is damaged, or its input
    cannot have that shape.
    """
    target = Path(path)
    if target.is_dir() or target.name == MANIFEST:
        return _inspect_bundle(Bundle.open(target.parent if target.name == MANIFEST else target), input_shape)
    if not target.exists():
        raise SurgeonError(f"there is no bundle or file {target}", "Give the path of a bundle or an .onnx file")
    if target.suffix.lower() != ".onnx":
        raise SurgeonError(f"{target} is neither a bundle's folder nor an .onnx file", "Give one of those")
    model = _load(target)
    text = next((entry.value for entry in model.metadata_props if entry.key == "surgeon"), None)
    manifest = Manifest.from_json(text) if text is not None else None
    facts = json.loads(text) if text is not None else {}
    report = _report(target, model, (), manifest, input_shape)
    return Inspection(str(target), (report,), facts, manifest)


def operators(file: FileReport) -> tuple[OperatorCount, ...]:
    """The operators of an ONNX file, the most frequent first, and which providers have kernels for them."""
    from surgeon.analysis.inspect.kernels import PROVIDERS, support

    assert file.structure is not None
    roles: dict[str, collections.Counter[str]] = {}
    verdicts: dict[str, dict[str, list[str | None]]] = {}
    for node in file.structure.nodes:
        roles.setdefault(node.operator, collections.Counter())[node.role] += 1
        of_operator = verdicts.setdefault(node.operator, {provider: [] for provider in PROVIDERS})
        for provider in PROVIDERS:
            of_operator[provider].append(support(node, file.structure.opsets, provider))
    worst = {
        name: {provider: min(all_of, key=_VERDICTS.index) for provider, all_of in by_provider.items()}
        for name, by_provider in verdicts.items()
    }
    listed = [OperatorCount(name, dict(counts), worst[name]) for name, counts in roles.items()]
    return tuple(sorted(listed, key=lambda count: (-sum(count.counts.values()), count.operator)))


_VERDICTS = ("no", None, "expanded", "yes")


def _inspect_bundle(bundle: Bundle, input_shape: Shape) -> Inspection:
    bundle.check()
    manifest, reports = bundle.manifest, []
    for name, file in manifest.files.items():
        artifact = manifest.artifacts.get(name)
        if artifact is None:
            reports.append(FileReport(name, file.bytes, ""))
        elif artifact.format == "onnx":
            path, described = bundle.path / name, (*artifact.inputs, *artifact.outputs)
            reports.append(_report(path, _load(path), described, manifest, input_shape))
        else:
            reports.append(FileReport(name, file.bytes, artifact.format, artifact.inputs, artifact.outputs))
    return Inspection(str(bundle.path), tuple(reports), manifest.facts(), manifest)


def _report(
    path: Path, model: onnx.ModelProto, described: Iterable[Port], manifest: Manifest | None, input_shape: Shape
) -> FileReport:
    """The report on an ONNX file: its own statement of its ports, with their meanings from the manifest."""
    from surgeon.analysis.inspect import shape_inference as inference
    from surgeon.analysis.inspect.structure import read

    meanings = {port.name: port.meaning for port in described}
    defaults = {initializer.name: _default(initializer) for initializer in model.graph.initializer}
    image = manifest.image if manifest is not None else None
    sizes = {"H": image.height, "W": image.width} if image is not None and not input_shape else {}
    inputs = inference.ports(model.graph)
    if input_shape and inputs:
        _require_fit(inputs[0], input_shape)
    return FileReport(
        name=path.name,
        bytes=path.stat().st_size,
        format="onnx",
        inputs=tuple(_port(value, meanings, defaults.get(value.name)) for value in inputs),
        outputs=tuple(_port(value, meanings, None) for value in model.graph.output),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        metadata={entry.key: entry.value for entry in model.metadata_props if entry.key != "surgeon"},
        _read=functools.partial(read, model, sizes, input_shape),
    )


def _require_fit(value: onnx.ValueInfoProto, input_shape: Shape) -> None:
    """Raise SurgeonError where one sample of the input `value` cannot have that shape."""
    from surgeon.analysis.inspect import shape_inference as inference

    stated = inference.shape(value)
    if stated is None:
        return
    sample = stated[1:]
    pairs = zip(sample, input_shape, strict=False)
    if len(sample) != len(input_shape) or any(isinstance(size, int) and size != given for size, given in pairs):
        raise SurgeonError(
            f"one sample of {value.name} is [{', '.join(map(str, sample))}], not [{', '.join(map(str, input_shape))}]",
            "Give numbers for the sizes that are free, and the others as they are",
        )


def _port(
    value: onnx.ValueInfoProto, meanings: dict[str, str], default: float | int | tuple[float, ...] | None
) -> Port:
    import onnx

    from surgeon.analysis.inspect import shape_inference as inference

    tensor = value.type.tensor_type
    known = value.type.HasField("tensor_type") and tensor.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "?"  # such as a sequence
    return Port(value.name, dtype, inference.shape(value) or (), meanings.get(value.name, ""), default)


def _default(initializer: onnx.TensorProto) -> float | int | tuple[float, ...] | None:
    """Value of a scalar initializer, and of a temperature per gate; None for any other."""
    import onnx

    row = len(initializer.dims) == 1 and initializer.name == "temperature"
    if initializer.data_location == onnx.TensorProto.EXTERNAL or (list(initializer.dims) and not row):
        return None
    item = onnx.numpy_helper.to_array(initializer).tolist()
    return tuple(item) if row else item if isinstance(item, (int, float)) else None


def _load(path: Path) -> onnx.ModelProto:
    """The model's graph, without the weights beside it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise SurgeonError(f"{path} is not an ONNX file that can be read", "See that the file is whole") from error
    if not model.graph.node and not model.opset_import:  # an empty or foreign file may parse as an empty message
        raise SurgeonError(f"{path} is not an ONNX file that can be read", "See that the file is whole")
    return model
