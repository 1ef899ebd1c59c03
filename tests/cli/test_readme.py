from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^(surgeon .*exported/digits.*?)(?: +#.*)?$", TEXT, re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the sample bundle where the README expects it."""
    shutil.copytree(README.parent / "exported" / "digits", tmp_path / "exported" / "digits")
    shutil.copy(README.parent / "exported" / "digit.png", tmp_path / "exported")
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(README.parent)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=[f"program-{number}" for number in range(len(PROGRAMS))])
def test_program_runs(program: str, clone: Path) -> None:
    run(clone, "-W", "error", "-c", program)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, clone: Path) -> None:
    run(clone, str(README.parent / "cli.py"), *shlex.split(command)[1:])


def test_finds_what_it_should() -> None:
    assert len(PROGRAMS) == 5
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("path", [*re.findall(r"\]\(([^):#]+)\)", TEXT), *re.findall(r"`(surgeon/[a-z_/.]+)`", TEXT)])
def test_what_it_points_to_is_there(path: str) -> None:
    assert (README.parent / path).exists()
