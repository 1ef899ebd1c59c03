"""Networks saved by torch.export: `.pt2` files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from surgeon.errors import ConversionError, SurgeonError, first_line
from surgeon.network.importer.onnx_file import Imported
from surgeon.network.inputs import Shapes, arrange, refuse_unknown, stated_shape
from surgeon.network.modules import silent_torch

aten = torch.ops.aten


def import_program(
    path: Path,
    output: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    input: str | None = None,
    extra_inputs: Shapes | None = None,
) -> Imported:
    """The network in the `.pt2` file `path`, from tensors with a dynamic batch to one tensor.

    `output`, `input_shape`, `input` and `extra_inputs` are as in `import_onnx`. Raises SurgeonError for a damaged file,
    and ConversionError where it holds something else, or was exported with a fixed batch or in training mode.
    """
    program = _read(path)
    given, returned = program.graph_signature.user_inputs, list(program.graph_signature.user_outputs)
    taken = {str(name): _value(program, str(name)) for name in given}
    if input is not None and input not in taken:
        raise SurgeonError(f"{path.name} has no input {input!r}", f"It takes {', '.join(taken)}")
    called = input or next((name for name, value in taken.items() if _is_float32(value)), str(given[0]))
    names = [str(name) for name in returned]
    if output is not None and output not in names:
        raise SurgeonError(f"{path.name} has no output {output!r}", f"Its outputs: {', '.join(names)}")
    if output is None and len(names) != 1:
        raise ConversionError(
            f"{path.name} has {len(names)} outputs ({', '.join(names)})", f"Name one: {path}:{names[0]}"
        )
    _refuse_training(path, program)
    if not _is_float32(taken[called]):
        raise ConversionError(
            f"the input {called} of {path.name} is no float32 tensor", "Give a network that takes one"
        )
    shape = _shape(path, called, taken.pop(called), input_shape, "--input-shape")
    refuse_unknown(path.name, extra_inputs or {}, list(taken))
    shapes = {name: _extra_port(path, name, value, (extra_inputs or {}).get(name)) for name, value in taken.items()}
    module, _, ports = arrange(_plain(program, names.index(output or names[0])), called, shapes)
    return Imported(module, shape, called, output or names[0], ports)


def _read(path: Path) -> ExportedProgram:
    try:
        with silent_torch():
            return torch.export.load(path)
    except Exception as error:  # zip, JSON, pickle and schema errors have no common base
        raise SurgeonError(
            f"{path} cannot be read as a saved torch.export program ({_foreign(path) or first_line(error)})",
            "Save it with torch.export.save, and see that the file is whole",
        ) from error


def _foreign(path: Path) -> str:
    """What `path` is instead, if that is plain; else ""."""
    if not zipfile.is_zipfile(path):
        return "no zip archive, or not the whole of one"
    with zipfile.ZipFile(path) as archive:
        names = {Path(name).name for name in archive.namelist()}
    if "data.pkl" in names:
        return "a TorchScript file" if "constants.pkl" in names else "a file of torch.save, such as a state dict"
    return ""


def _is_float32(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _value(program: ExportedProgram, name: str) -> Any:
    return next(node.meta["val"] for node in program.graph.nodes if node.name == name)


def _extra_port(path: Path, name: str, value: Any, stated: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an extra input; `stated` is the user's, or None."""
    dtype = str(getattr(value, "dtype", None)).removeprefix("torch.")
    wanted = None if stated is None else stated_shape(path.name, name, stated, dtype)
    return _shape(path, name, value, wanted, f"--extra-input {name}=SHAPE"), dtype


def _shape(path: Path, name: str, value: Any, wanted: tuple[int, ...] | None, option: str) -> tuple[int, ...]:
    if not isinstance(value, torch.Tensor):
        raise ConversionError(f"the input {name} of {path.name} is no tensor", "Export a network that takes tensors")
    stated = list(value.shape)
    if not stated or isinstance(stated[0], int):
        raise ConversionError(
            f"{path.name} was exported for inputs of {stated}, with a fixed batch",
            'Export it with dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)',
        )
    sizes = [size if isinstance(size, int) else None for size in stated[1:]]
    shape = tuple(size for size in sizes if size is not None) if wanted is None else tuple(wanted)
    if wanted is None and None in sizes:
        raise SurgeonError(f"{path.name} takes {stated} as {name}, which leaves sizes open", f"Give {option}")
    if len(shape) != len(sizes) or any(size not in (None, own) for size, own in zip(sizes, shape, strict=True)):
        raise SurgeonError(f"{path.name} takes {stated}, not {list(shape)}", f"Leave {option.split()[0]} out")
    return shape


def _refuse_training(path: Path, program: ExportedProgram) -> None:
    """Raise ConversionError where an argument of dropout or a batch norm sets training mode."""
    flags = {aten.dropout.default: 2, aten.batch_norm.default: 5, aten.instance_norm.default: None}
    for node in program.graph.nodes:
        place = flags.get(node.target)
        if place is not None and node.args[place] is True:
            raise ConversionError(
                f"{path.name} was exported in training mode ({node.name})", "Call .eval() before torch.export"
            )


def _plain(program: ExportedProgram, output: int) -> GraphModule:
    """The program as a plain graph module that returns one tensor, without run-time guards."""
    unlifted = program.module(check_guards=False)
    graph = unlifted.graph
    graph.set_codegen(CodeGen())
    returned = graph.output_node()
    values = returned.args[0]
    returned.args = (values[output] if isinstance(values, (tuple, list)) else values,)
    plain = GraphModule(unlifted, graph, "ExportedNetwork")
    plain.graph.eliminate_dead_code()
    plain.recompile()
    return plain.eval()
