"""What a bundle or an ONNX file takes, gives and holds, read without its weights and without running it. Torch-free."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.artifacts.bundle import MANIFEST, Bundle
from surgeon.artifacts.manifest import Manifest, Port
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    import onnx

ROLES = ("forward", "backward", "step")
"""What a node of an artifact is for, as its metadata says; a node that says nothing counts as "unmarked"."""


@dataclass(frozen=True)
class FileReport:
    """One file: what it takes and gives where it computes something, and how often each operator occurs by role."""

    name: str
    bytes: int
    format: str  # onnx, torchscript, or "" for weights
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    opset: int | None = None
    operators: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # role -> operator -> count

    def operator_count(self, role: str) -> int:
        """Number of nodes of that role."""
        return sum(self.operators.get(role, {}).values())


@dataclass(frozen=True)
class Inspection:
    """A bundle or one ONNX file, described.

    `manifest` is the bundle's, or the facts that surgeon wrote into the file (without files and verification); None
    for an ONNX file from elsewhere. `facts` is the same as plain data.
    """

    path: str
    files: tuple[FileReport, ...]
    facts: dict[str, Any]
    manifest: Manifest | None = None

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        files = [dataclasses.asdict(file) for file in self.files]
        return {"path": self.path, "bytes": self.bytes, "files": files, "facts": self.facts}


def inspect(path: str | Path) -> Inspection:
    """Describe the bundle folder or ONNX file at `path`; a bundle's files are checked against its manifest first.

    Raises SurgeonError where there is neither, or it is damaged.
    """
    target = Path(path)
    if target.is_dir() or target.name == MANIFEST:
        return _inspect_bundle(Bundle.open(target.parent if target.name == MANIFEST else target))
    if not target.exists():
        file = target.suffix.lower() in (".onnx", ".pt2", ".json") or len(target.parts) > 1
        export = f"For a model, export it first: `surgeon export {target} -o exported/{target.name}`"
        raise SurgeonError(
            f"there is no bundle or file {target}", "Give the path of a bundle or an .onnx file" if file else export
        )
    if target.suffix.lower() != ".onnx":
        raise SurgeonError(f"{target} is neither a bundle's folder nor an .onnx file", "Give one of those")
    model = _load(target)
    text = next((entry.value for entry in model.metadata_props if entry.key == "surgeon"), None)
    manifest = Manifest.from_json(text) if text is not None else None
    facts = json.loads(text) if text is not None else {}
    return Inspection(str(target), (_report(target, model, ()),), facts, manifest)


def _inspect_bundle(bundle: Bundle) -> Inspection:
    bundle.check()
    manifest, reports = bundle.manifest, []
    for name, file in manifest.files.items():
        artifact = manifest.artifacts.get(name)
        if artifact is None:
            reports.append(FileReport(name, file.bytes, ""))
        elif artifact.format == "onnx":
            path, described = bundle.path / name, (*artifact.inputs, *artifact.outputs)
            reports.append(_report(path, _load(path), described))
        else:
            reports.append(FileReport(name, file.bytes, artifact.format, artifact.inputs, artifact.outputs))
    return Inspection(str(bundle.path), tuple(reports), json.loads(manifest.to_json()), manifest)


def _report(path: Path, model: onnx.ModelProto, described: Iterable[Port]) -> FileReport:
    """What the ONNX file itself says of its ports; the manifest only adds what they mean."""
    meanings = {port.name: port.meaning for port in described}
    defaults = {initializer.name: _default(initializer) for initializer in model.graph.initializer}
    # Before IR version 4 every weight is an input too: a port is what has no initializer, or a scalar one.
    inputs = [value for value in model.graph.input if value.name not in defaults or defaults[value.name] is not None]
    operators: dict[str, collections.Counter[str]] = {}
    for role, operator in _operators(model.graph.node):
        operators.setdefault(role, collections.Counter())[operator] += 1
    return FileReport(
        name=path.name,
        bytes=path.stat().st_size,
        format="onnx",
        inputs=tuple(_port(value, meanings, defaults.get(value.name)) for value in inputs),
        outputs=tuple(_port(value, meanings, None) for value in model.graph.output),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        operators={role: dict(operators[role].most_common()) for role in sorted(operators, key=_place)},
    )


def _place(role: str) -> int:
    """Where a role stands in a list: those of ROLES in their order, then what is unmarked."""
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _operators(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    """Role and operator of every node, bodies of loops and branches included."""
    for node in nodes:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        yield metadata.get("surgeon.role", "unmarked"), domain + node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _operators(graph.node)


def _port(
    value: onnx.ValueInfoProto, meanings: dict[str, str], default: float | int | tuple[float, ...] | None
) -> Port:
    import onnx

    tensor = value.type.tensor_type
    known = value.type.HasField("tensor_type") and tensor.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "?"  # such as a sequence
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in tensor.shape.dim)
    return Port(value.name, dtype, shape, meanings.get(value.name, ""), default)


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
