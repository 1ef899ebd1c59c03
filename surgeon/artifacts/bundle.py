"""A bundle on disk: opened with its files checked, written beside its place and then renamed. Torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from surgeon.artifacts.manifest import File, Manifest
from surgeon.errors import SurgeonError

MANIFEST = "manifest.json"
_AGAIN = "Export the bundle again, or copy it again from where it came"
_FULL = 1 << 20  # bytes: with less than this free after a failed write, the disk is what failed


class Bundle:
    """A bundle folder and its manifest; a file is handed out only after its size and SHA-256 were found right."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """The bundle in folder `path`; its files are checked as they are asked for.

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


@contextlib.contextmanager
def staged(destination: str | Path, what: str = "bundle", mark: str = MANIFEST) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends well.

    Whatever ends the block early (an error, a full disk, Ctrl-C, SIGTERM) removes the temporary folder and leaves a
    bundle that was there as it was. Raises SurgeonError where `destination` is something other than a bundle or an
    empty folder, and, naming it, in place of any OSError. `what` is the word for another kind of folder than a bundle,
    and `mark` the file by which it is known.
    """
    target = Path(destination).resolve()  # a symbolic link keeps pointing at the bundle that is replaced
    _refuse_foreign(target, what, mark)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    created: list[Path] = []
    with _termination_raises():
        try:
            created += _make_folders(target.parent)
            partial.mkdir()
            yield partial
            _publish(partial, target, what)
        except BaseException as error:
            with _signals_held():
                full = _disk_is_full(partial)
                shutil.rmtree(partial, ignore_errors=True)
                for folder in created:
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            if isinstance(error, OSError) or (full and isinstance(error, Exception)):
                raise _write_error(target, error, full, what) from error
            raise


def _refuse_foreign(target: Path, what: str, mark: str) -> None:
    """Raise where putting a bundle at `target` would remove something that is not one."""
    if target.is_file():
        raise SurgeonError(f"{target} is a file", f"Choose another folder for the {what}")
    if Path.cwd().resolve().is_relative_to(target):
        raise SurgeonError(f"{target} is the folder you are in, or around it", f"Choose another for the {what}")
    if target.is_dir() and not (target / mark).is_file() and any(target.iterdir()):
        raise SurgeonError(
            f"{target} holds files and is not a {what}, so it is not replaced", "Choose another folder, or empty it"
        )


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` with its parents; return those that were not there, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _publish(partial: Path, target: Path, what: str) -> None:
    """Rename `partial` to `target`; what was at `target` is moved aside first, and moved back if that fails."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    with _signals_held():  # two renames: nothing is gained by stopping between them
        if target.exists():
            target.rename(aside)
        try:
            partial.rename(target)
        except OSError:
            if aside.exists():
                aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    if aside.exists():
        raise SurgeonError(f"the {what} {target} is written, but the old one cannot be removed", f"Remove {aside}")


def _disk_is_full(folder: Path) -> bool:
    """Whether next to nothing is free there: libraries in C++ report a failed write in words of their own."""
    try:
        return shutil.disk_usage(folder).free < _FULL
    except OSError:
        return False


def _write_error(target: Path, error: BaseException, full: bool, what: str) -> SurgeonError:
    number = error.errno if isinstance(error, OSError) else None
    if full or number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SurgeonError(
            f"the disk is full: the {what} {target} could not be written, and nothing was left of it",
            "Free some space, or choose another folder",
        )
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    at = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return SurgeonError(
        f"the {what} {target} could not be written ({reason}{at})", "See that the folder may be written to"
    )


def _where(folder: Path) -> str:
    """What to type instead of a path that is no bundle."""
    usual = Path("exported") / folder.name
    if folder != usual and (usual / MANIFEST).is_file():
        return f"Did you mean {usual}?"
    return f"Make one with `surgeon export MODEL -o {folder}`"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """SIGTERM ends the block as an exception would, so that it cleans up; a handler of the host's own is kept."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is done.

    By Python's handlers and not by the thread's signal mask: the kernel may hand the signal to any of torch's threads.
    """
    if not _in_main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for held in before:
        signal.signal(held, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in arrived[:1]:
            signal.raise_signal(late)
