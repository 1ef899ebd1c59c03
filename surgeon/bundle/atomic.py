"""Folders and files that are written beside their place and then renamed: whole or not at all. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from surgeon.bundle.manifest import MANIFEST
from surgeon.errors import SurgeonError

_FULL = 1 << 20  # bytes: with less than this free after a failed write, the disk is full


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
    """Raise where a bundle at `target` would replace something that is no bundle."""
    if target.is_file():
        raise SurgeonError(f"{target} is a file", f"Choose another folder for the {what}")
    if Path.cwd().resolve().is_relative_to(target):
        raise SurgeonError(f"{target} is the folder you are in, or around it", f"Choose another for the {what}")
    if target.is_dir() and not (target / mark).is_file() and any(target.iterdir()):
        raise SurgeonError(
            f"{target} holds files and is not a {what}, so it is not replaced", "Choose another folder, or empty it"
        )


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` with its parents; return the new ones, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _publish(partial: Path, target: Path, what: str) -> None:
    """Rename `partial` to `target`; an old `target` is moved aside first, and moved back if that fails."""
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
    """Whether the disk there is full: libraries in C++ report a failed write in other ways."""
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name in the end; its folder is made.

    Raises SurgeonError where that cannot be written. Whatever is raised, nothing is left, and an old file stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # such as a folder that is a file: the first error reports it
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SurgeonError(f"{path} cannot be written ({error.strerror or error})") from error
        raise
