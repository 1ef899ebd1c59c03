"""Runs one finding in a temporary folder with pinned packages, and compares what it sees with the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_INSIDE = "--inside"


def main(
    script: str, pins: Sequence[str], observe: Callable[[], Mapping[str, object]], record: Mapping[str, object]
) -> None:
    """Install `pins`, call `observe` with them, and print what it returns beside `record`.

    `observe` returns plain JSON values. Exits with 0 if they are those of `record`, with 1 if any has changed.
    """
    if _INSIDE in sys.argv:
        print(json.dumps(observe()))
        return
    with tempfile.TemporaryDirectory(prefix="finding-") as folder:
        python = _environment(Path(folder), pins)
        # -E and -s: neither PYTHONPATH nor the user's own packages stand in front of the pinned ones.
        command = [python, "-E", "-s", os.path.abspath(script), _INSIDE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the program failed:\n{done.stdout}{done.stderr}")
    seen = json.loads(done.stdout.splitlines()[-1])
    sys.exit(_report(pins, seen, json.loads(json.dumps(record))))


def _environment(folder: Path, pins: Sequence[str]) -> str:
    """The Python of a new virtual environment with `pins` in it."""
    print(f"Installing {', '.join(pins)} into a temporary folder", flush=True)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins], check=True)
    return str(python)


def _report(pins: Sequence[str], seen: Mapping[str, object], record: Mapping[str, object]) -> int:
    """Print every observation; return how the script ends."""
    changed = 0
    for name in dict.fromkeys((*record, *seen)):
        print(f"{name}: {seen.get(name)}")
        if seen.get(name) != record.get(name):
            changed += 1
            print(f"    changed: the record says {record.get(name)}")
    print(f"{changed} changed" if changed else f"As recorded, with {', '.join(pins)}")
    return bool(changed)
