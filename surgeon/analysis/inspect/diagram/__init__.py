"""Pictures of pullback graphs, forward beside backward, by module: .svg to keep, .html to explore. Torch-free."""

from __future__ import annotations

import contextlib
from pathlib import Path

from surgeon.analysis.inspect.diagram.tree import build, opened
from surgeon.analysis.inspect.inspection import Inspection
from surgeon.errors import SurgeonError


def draw(inspection: Inspection, path: Path, depth: int | None = None, pattern: str | None = None) -> None:
    """Write the picture of `inspection` beside `path`, an .svg or .html file, then rename it.

    Modules are opened `depth` levels deep (None: as far as some forty rows go), and those that `pattern` names. Raises
    SurgeonError where there is no ONNX file or nothing in it, no module has that name, or the file cannot be written.
    """
    from surgeon.analysis.inspect.diagram import page, svg

    diagram = build(inspection)
    open_groups = opened(diagram, depth, pattern)
    text = (svg if path.suffix.lower() == ".svg" else page).render(diagram, open_groups)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error says what is wrong
            partial.unlink(missing_ok=True)
        raise SurgeonError(f"{path} cannot be written ({error.strerror or error})") from error
