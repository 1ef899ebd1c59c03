"""The site on this machine's own address: the folder's files, and nothing else."""

from __future__ import annotations

import http.server
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any

from surgeon.app.policy import HEADERS
from surgeon.app.site import MARK
from surgeon.errors import SurgeonError

HOST = "127.0.0.1"


class Server(http.server.ThreadingHTTPServer):
    """A server of `folder` at 127.0.0.1 and `port` (0: any free one).

    Raises SurgeonError where the folder is no site, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        if not (folder / MARK).is_file():
            raise SurgeonError(f"{folder} is not a site", f"Write one: surgeon app BUNDLE -o {folder}")
        self.folder = folder.resolve()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SurgeonError(f"port {port} cannot be served ({reason})", "Give another --port, or 0") from error

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore it: a browser that closed the connection is no error."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files of the folder alone: no listings, no way out by `..` or links, no other host's name."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "surgeon", ""
    extensions_map = {  # noqa: RUF012
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".png": "image/png",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def send_head(self) -> Any:
        """As the base class does, for files of the folder."""
        if not self._is_for_us():
            return self.send_error(HTTPStatus.FORBIDDEN)
        path = Path(self.translate_path(self.path))
        try:
            served = path.resolve().is_relative_to(self.server.folder) and path.is_file()
        except (OSError, ValueError):  # not a file name at all
            served = False
        return super().send_head() if served else self.send_error(HTTPStatus.NOT_FOUND)

    def translate_path(self, path: str) -> str:
        """The file that `path` names in the folder."""
        self.directory = str(self.server.folder)
        file = super().translate_path(path)
        return str(Path(file) / "index.html") if urllib.parse.urlsplit(path).path == "/" else file

    def _is_for_us(self) -> bool:
        """Whether the request names this machine: under any other name, a foreign page could read along."""
        port = self.server.server_address[1]
        return self.headers.get("Host") in {f"{name}:{port}" for name in (HOST, "localhost")}

    def end_headers(self) -> None:
        """Add the policy to every answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
