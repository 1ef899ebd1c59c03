"""A bundle on disk: open it, check its files, seal a new one. Torch-free."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from surgeon.bundle.manifest import MANIFEST, File, Manifest
from surgeon.errors import SurgeonError

_AGAIN = "Export the bundle again, or copy it again from where it came"


class Bundle:
    """A bundle folder and its manifest; `file` checks size and SHA-256 before it returns a path."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """The bundle in folder `path`; `file` checks each file at its first use.

        Raises SurgeonError where there is no folder, no manifest, or a manifest of another schema version.
        """
        folder = Path(path)
        if not folder.is_dir():
            found = "is a file, not a bundle's folder" if folder.exists() else "does not exist"
            raise SurgeonError(f"the bundle {folder} {found}", _where(folder))
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise SurgeonError(f"{folder} is not a bundle: it has no {MANIFEST}", _where(folder)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise SurgeonError(f"{folder / MANIFEST} cannot be read ({error})", _AGAIN) from error
        try:
            return cls(folder, Manifest.from_json(text))
        except SurgeonError as error:
            raise SurgeonError(f"{folder / MANIFEST}: {error.message}", error.remedy) from error

    def file(self, name: str) -> Path:
        """Path of the file `name`, after checking it, and for an ONNX file the weights beside it.

        Raises SurgeonError where the manifest does not list it, it is missing, or its bytes are not those exported.
        """
        if name not in self.manifest.files:
            there = ", ".join(sorted(self.manifest.files)) or "no files"
            formats = {artifact.format for artifact in self.manifest.artifacts.values()}
            remedy = "Export it again with --formats onnx" if formats == {"torchscript"} else _AGAIN
            raise SurgeonError(f"the bundle {self.path} holds no {name} (it lists {there})", remedy)
        shared = [other for other in self.manifest.files if other not in self.manifest.artifacts]
        for needed in [name, *(shared if name.endswith(".onnx") else [])]:
            if needed not in self._checked:
                self._check(needed)
                self._checked.add(needed)
        return self.path / name

    def check(self) -> None:
        """Check every file that the manifest lists; raises SurgeonError at the first that is missing or changed."""
        for name in {**self.manifest.files, **self.manifest.artifacts}:
            self.file(name)

    def _check(self, name: str) -> None:
        path, expected = self.path / name, self.manifest.files[name]
        if Path(name).name != name:
            raise SurgeonError(f"the manifest of {self.path} lists a file outside the bundle: {name}", _AGAIN)
        if not path.is_file():
            raise SurgeonError(f"{path} is missing", _AGAIN)
        try:
            found = fingerprint(path)
        except OSError as error:
            raise SurgeonError(f"{path} cannot be read ({error.strerror})", _AGAIN) from error
        if found.bytes != expected.bytes:
            raise SurgeonError(f"{path} has {found.bytes} bytes where the manifest says {expected.bytes}", _AGAIN)
        if found.sha256 != expected.sha256:
            raise SurgeonError(f"{path} was changed since its export (its SHA-256 is not the manifest's)", _AGAIN)


def fingerprint(path: Path) -> File:
    """SHA-256 and size of a file."""
    with path.open("rb") as stream:
        return File(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` into `folder`, with every file there hashed; return the manifest written.

    Raises SurgeonError where an artifact that the manifest describes is not in the folder.
    """
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    missing = sorted(set(manifest.artifacts) - set(files))
    if missing:
        raise SurgeonError(f"the bundle lacks {', '.join(missing)}, which its manifest describes")
    sealed = dataclasses.replace(manifest, files=files)
    written = folder / MANIFEST
    written.write_text(sealed.to_json(), encoding="utf-8")
    for name in files:  # onnx writes weights that only their owner may read
        (folder / name).chmod(written.stat().st_mode)
    return sealed


def _where(folder: Path) -> str:
    """A remedy for a path that is no bundle."""
    usual = Path("exported") / folder.name
    if folder != usual and (usual / MANIFEST).is_file():
        return f"Did you mean {usual}?"
    return f"Make one with `surgeon export SOURCE -o {folder}`"
