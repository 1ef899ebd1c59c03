"""A static site in which a browser runs ascents: written by `write_site`, served by `serve`. Torch-free."""

from __future__ import annotations

from surgeon.app.serve import Server
from surgeon.app.site import write_site

__all__ = ["Server", "write_site"]
