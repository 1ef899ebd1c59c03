"""surgeon: rewrite a ReLU network into its pullback graph, and export that graph."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and the modules that define them: imported when first asked for, since conversion needs torch and
# running an artifact does not.
_PUBLIC = {
    "rewrite": "surgeon.conversion.rewriting",
    "export": "surgeon.exporting",
    "load": "surgeon.runtime.session",
    "Session": "surgeon.runtime.session",
    "Bundle": "surgeon.bundle.folder",
    "Defaults": "surgeon.bundle.manifest",
    "Recipe": "surgeon.bundle.manifest",
    "SurgeonError": "surgeon.errors",
}

__all__ = ["Bundle", "Defaults", "Recipe", "Session", "SurgeonError", "__version__", "export", "load", "rewrite"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'surgeon' has no attribute {name!r}")
    if name == "Recipe":
        importlib.import_module("surgeon.conversion.gates")  # which tells Recipe the names of the gates; without torch
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
