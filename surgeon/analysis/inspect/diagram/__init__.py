"""Pictures of pullback graphs, forward beside backward, by module: .svg to keep, .html to explore. Torch-free."""

from __future__ import annotations

from pathlib import Path

from surgeon.analysis.inspect.diagram.tree import build, opened
from surgeon.analysis.inspect.inspection import Inspection
from surgeon.bundle.atomic import replacing


def draw(inspection: Inspection, path: Path, depth: int | None = None, pattern: str | None = None) -> None:
    """Write the picture of `inspection` to `path`, an .svg or .html file, which it replaces only when it is complete.

    Modules are opened `depth` levels deep (None: down to some forty rows), and those that match `pattern`. Raises
    SurgeonError where there is no ONNX file or it is empty, no module matches, or the file cannot be written.
    """
    from surgeon.analysis.inspect.diagram import page, svg

    diagram = build(inspection)
    open_groups = opened(diagram, depth, pattern)
    text = (svg if path.suffix.lower() == ".svg" else page).render(diagram, open_groups)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
