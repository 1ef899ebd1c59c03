"""onnxruntime-web, which every site contains: from the npm registry, the user's cache, or a local copy.

`pooch` would fetch and cache it in half the lines, but brings requests and its dependencies for one file, and the
checks of a local copy and the one-line errors would stay.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from surgeon.bundle.atomic import replacing
from surgeon.errors import SurgeonError

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The hash of the registry's tarball, as in npm's lock files."""

FILES = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",  # the one that WebGPU needs
)
_ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
_REGISTRY = "https://registry.npmjs.org/"
_GIVE = "Give a copy of it with --runtime FILE.tgz or --runtime FOLDER"
_SECONDS = 60  # without a byte, after which the registry counts as away
_BLOCK = 1 << 20

Tick = Callable[[int, int | None], None]
"""Called with the number of bytes fetched, and of all bytes where that is known."""


def runtime(given: Path | None, tick: Tick = lambda done, total: None) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each of FILES, from `given` (the tarball, or a folder that it was unpacked to), or the cache.

    Where the cache is empty, the tarball is fetched from the npm registry first. Raises SurgeonError, before the first
    file, where it cannot be fetched, is another version, or has another hash.
    """
    if given is not None and given.is_dir():
        yield from _of_folder(given)
        return
    archive = given or _cached(tick)
    _check(archive)
    with tarfile.open(archive) as packed:
        for name in FILES:
            file = packed.extractfile(f"package/dist/{name}")
            assert file is not None  # by the hash
            yield name, file.read()


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    places = (folder, folder / "dist", folder / "package" / "dist")
    dist = next((place for place in places if (place / FILES[0]).is_file()), folder)
    missing = [name for name in FILES if not (dist / name).is_file()]
    if missing:
        raise SurgeonError(
            f"{folder} is no copy of onnxruntime-web {VERSION}: it has no {missing[0]}", "Unpack the registry's tarball"
        )
    with (dist / FILES[0]).open("rb") as file:
        start = file.read(200)
    if f"ONNX Runtime Web v{VERSION}".encode() not in start:
        raise SurgeonError(f"{folder} holds another version of onnxruntime-web", f"Give version {VERSION}")
    for name in FILES:
        yield name, (dist / name).read_bytes()


def _check(archive: Path) -> None:
    """Raise SurgeonError unless `archive` is the pinned tarball, byte for byte."""
    try:
        with archive.open("rb") as file:
            found = _integrity(hashlib.file_digest(file, "sha512").digest())
    except OSError as error:
        raise SurgeonError(f"{archive} cannot be read ({error.strerror})", _GIVE) from error
    if found != INTEGRITY:
        raise SurgeonError(
            f"{archive} is not onnxruntime-web {VERSION} as it was published (its SHA-512 is another)",
            "Take the npm registry's own tarball",
        )


def _integrity(digest: bytes) -> str:
    return f"sha512-{base64.b64encode(digest).decode()}"


def _cached(tick: Tick) -> Path:
    """The tarball in the user's cache, fetched if it is missing."""
    path = cache() / _ARCHIVE
    if not path.is_file():
        _fetch(path, tick)
    return path


def cache(variables: Sequence[str] = ("XDG_CACHE_HOME", "LOCALAPPDATA")) -> Path:
    """surgeon's folder in the user's cache."""
    named = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(named or usual) / "surgeon"


def address() -> str:
    """Where the registry has the tarball; npm's own variable names another registry."""
    registry = os.environ.get("npm_config_registry") or _REGISTRY  # noqa: SIM112
    return f"{registry.rstrip('/')}/onnxruntime-web/-/{_ARCHIVE}"


def _fetch(path: Path, tick: Tick) -> None:
    """Fetch the tarball to `path`; leaves nothing there unless it is complete and has the pinned hash."""
    url = address()
    if urllib.parse.urlsplit(url).scheme != "https":
        raise SurgeonError(f"the npm registry {url} is not reached by https", _GIVE)
    digest, done = hashlib.sha512(), 0
    with replacing(path) as partial:
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer, partial.open("wb") as file:
                total = int(answer.headers.get("Content-Length") or 0) or None
                while block := answer.read(_BLOCK):
                    file.write(block)
                    digest.update(block)
                    done += len(block)
                    tick(done, total)
        except urllib.error.URLError as error:
            reason = error.reason if isinstance(error.reason, str) else getattr(error.reason, "strerror", error.reason)
            raise SurgeonError(f"onnxruntime-web cannot be fetched from {url} ({reason})", _GIVE) from error
        except TimeoutError as error:
            raise SurgeonError(f"{url} does not answer", _GIVE) from error
        if _integrity(digest.digest()) != INTEGRITY:
            raise SurgeonError(f"what {url} sent is not onnxruntime-web {VERSION} as it was published", _GIVE)
