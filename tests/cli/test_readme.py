"""README and docs: programs and commands run, options exist, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import surgeon.cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "exported" / "README.md",
    ROOT / "findings" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "examples" / "README.md",
    *sorted((ROOT / "surgeon").rglob("README.md")),
]
SHELL = {
    "make ": "the targets are those of the Makefile",
    "git clone ": "needs a network",
    "pip install ": "needs a network, and changes the environment",
    "npm ": "tests/cli/test_examples.py",
    "node ": "tests/cli/test_examples.py",
    "cmake ": "tests/cli/test_examples.py",
    "build/": "tests/cli/test_examples.py",
    "convert ": "ImageMagick",
    "bash findings/": "installs packages, and is no part of CI",
}
"""How lines begin that no test runs as they are, and why, or by what they are tested."""

NOT_RUN = {
    "app": "fetches onnxruntime-web; tests/app",
    "evaluate": "tests/analysis/test_evaluate.py",
    "gates": "tests/conversion/test_gate_outputs.py",
}
"""Commands that are parsed alone, even on the sample bundle."""


class Block(NamedTuple):
    """A fenced block: its page, language and text."""

    page: Path
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for language, text in re.findall(
            r"^```(.*)\n((?:.*\n)*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            yield Block(page=page, language=language, text=text)


BLOCKS = list(blocks())
PROGRAMS = [block for block in BLOCKS if block.language == "python"]
LINES = [
    (block.page, re.sub(r" +#.*$", "", line))
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
]
COMMANDS = [(page, line) for page, line in LINES if line.startswith("surgeon ")]


def needs_torch(text: str) -> bool:
    return bool(re.search(r"\btorch\b|surgeon\.(export|rewrite)|surgeon (check|export|models|bench)|SOURCE", text))


def runs(command: str) -> bool:
    """Whether a test runs it: on the sample bundle, or converting the sample's network."""
    words = command.split()
    if words[1] in NOT_RUN:
        return False
    return words[1] in ("models", "completion") or any(re.match(r"exported/digits$|tests\.", word) for word in words)


def cases(entries: list[tuple[str, str]]) -> list[object]:
    """Parameters from (name, text): what needs torch runs with the integration tests."""
    return [
        pytest.param(text, id=name, marks=[pytest.mark.integration] if needs_torch(text) else [])
        for name, text in entries
    ]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the sample bundle where README and docs expect it."""
    shutil.copytree(ROOT / "exported" / "digits", tmp_path / "exported" / "digits")
    shutil.copy(ROOT / "exported" / "digit.png", tmp_path / "exported")
    return tmp_path


@pytest.mark.parametrize("program", cases([(f"{b.page.stem}-{i}", b.text) for i, b in enumerate(PROGRAMS)]))
def test_program_runs(program: str, clone: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-W", "error", "-W", "ignore:`torch.jit", "-c", program]
    done = subprocess.run(arguments, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command", cases([(line, line) for line in dict.fromkeys(line for _, line in COMMANDS if runs(line))])
)
def test_command_runs(command: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for what starts Python again
    code = surgeon.cli.invoke(shlex.split(command)[1:])
    assert code == 0, capsys.readouterr()


@pytest.mark.parametrize("line", dict.fromkeys(line for _, line in COMMANDS))
def test_command_has_such_options(line: str) -> None:
    """Also where no test runs it."""
    words = shlex.split(line.partition(" > ")[0])[1:]
    command: click.Command = surgeon.cli.group
    context = click.Context(command, info_name="surgeon")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert not rest
    for parameter in command.params:
        given = values.get(parameter.name)
        if isinstance(parameter.type, click.Choice) and given is not None:
            for value in given if isinstance(given, list) else [given]:
                parameter.type.convert(value, parameter, context)
        assert given is not None or not (parameter.required and isinstance(parameter, click.Argument)), parameter.name


def words(text: str) -> list[str]:
    return [word for word in re.sub("─+", " ", text).split() if not re.fullmatch(r"[-\d.]+", word)]


def test_output_is_what_the_readme_shows(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Word by word, numbers left out: they differ between processors."""
    (shown,) = (block.text for block in BLOCKS if block.page == ROOT / "README.md" and block.language == "text")
    (command,) = (line for page, line in COMMANDS if page == ROOT / "README.md" and "exported/digits" in line)
    monkeypatch.chdir(clone)
    assert surgeon.cli.invoke(shlex.split(command)[1:]) == 0
    assert words(capsys.readouterr().out) == words(shown)


def test_every_block_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"python", "sh", "text"}
    others = [line for _, line in LINES if line and not line.startswith(("surgeon ", "#"))]
    unknown = [line for line in others if not line.startswith(tuple(SHELL))]
    assert not unknown
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text())]
    assert {line.split()[1] for line in others if line.startswith("make ")} | set(named) <= set(targets)


def test_finds_what_it_should() -> None:
    assert len(PROGRAMS) >= 8
    assert len({line for _, line in COMMANDS if runs(line)}) >= 15


def test_readme_lists_every_command() -> None:
    listed = re.findall(r"^\| `surgeon ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == set(surgeon.cli.COMMANDS)


def links() -> list[tuple[Path, Path, str]]:
    """(page, path) of each link to a file, and of each file of surgeon or tests that a page names."""
    found: list[tuple[Path, Path, str]] = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for path in re.findall(r"\]\(([^):]+)\)", text):
            found.append((page, (page.parent / path.partition("#")[0]) if path.partition("#")[0] else page, path))
        for path in re.findall(r"`((?:surgeon|tests|docs|findings|exported)/[a-z_/.]+)`", text):
            found.append((page, ROOT / path, path))
    return found


def test_links_lead_somewhere() -> None:
    assert not [(page.name, path) for page, target, path in links() if not target.exists()]


def test_anchors_are_headings() -> None:
    wrong = []
    for page, target, path in links():
        anchor = path.partition("#")[2]
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
        if anchor and anchor not in slugs:
            wrong.append((page.name, path))
    assert not wrong
