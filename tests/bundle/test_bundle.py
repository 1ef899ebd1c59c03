from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from surgeon.bundle import atomic
from surgeon.bundle.atomic import staged
from surgeon.bundle.folder import Bundle, seal
from surgeon.bundle.manifest import MANIFEST, Artifact
from surgeon.errors import SurgeonError
from tests.tiny_bundle import write_tiny


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny(tmp_path / "tiny")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sound_bundle_gives_its_files(tiny):
    bundle = Bundle.open(tiny)
    bundle.check()
    assert bundle.file("pullback.onnx") == tiny / "pullback.onnx"
    assert bundle.manifest.model.name == "tiny"


def test_the_folder_one_is_in_is_not_replaced(tiny, tmp_path, monkeypatch):
    inside = tiny / "inside"
    inside.mkdir()
    for here, destination in ((tiny, "."), (inside, "..")):
        monkeypatch.chdir(here)
        with pytest.raises(SurgeonError, match="the folder you are in"), staged(destination):
            pass
    assert Bundle.open(tiny).manifest


def test_sealed_files_have_the_manifests_permissions(tiny):
    assert {stat.S_IMODE(path.stat().st_mode) for path in tiny.iterdir()} == {
        stat.S_IMODE((tiny / MANIFEST).stat().st_mode)
    }


def test_seal_wants_every_artifact(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SurgeonError, match=r"lacks ascent\.onnx, ascent_step\.onnx, pullback\.onnx"):
        seal(tmp_path / "empty", Bundle.open(tiny).manifest)


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("pullback.onnx", change_byte, r"pullback\.onnx was changed since its export"),
        ("pullback.onnx.bin", change_byte, r"pullback\.onnx\.bin was changed"),  # the weights beside it
        ("pullback.onnx", Path.unlink, r"pullback\.onnx is missing"),
        ("pullback.onnx.bin", Path.unlink, r"pullback\.onnx\.bin is missing"),
        ("pullback.onnx", lambda path: path.write_bytes(b"short"), "has 5 bytes where the manifest says"),
    ],
)
def test_harm_is_found_before_use(tiny, name, harm, words):
    harm(tiny / name)
    with pytest.raises(SurgeonError, match=words) as caught:
        Bundle.open(tiny).file("pullback.onnx")
    assert caught.value.remedy


def test_another_schema_is_refused_by_file(tiny):
    data = json.loads((tiny / MANIFEST).read_text())
    (tiny / MANIFEST).write_text(json.dumps({**data, "schema": 7}))
    with pytest.raises(SurgeonError, match=r"manifest\.json: the bundle has schema version 7"):
        Bundle.open(tiny)


def test_a_manifest_cannot_point_outside(tiny):
    data = json.loads((tiny / MANIFEST).read_text())
    data["files"]["../tiny/pullback.onnx"] = data["files"]["pullback.onnx"]
    (tiny / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(SurgeonError, match="outside the bundle"):
        Bundle.open(tiny).check()


def test_what_is_no_bundle_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path, words in [("nowhere", "does not exist"), ("file", "is a file"), ("", "has no manifest.json")]:
        with pytest.raises(SurgeonError, match=words):
            Bundle.open(tmp_path / path)
    with pytest.raises(SurgeonError, match=r"holds no other\.onnx"):
        Bundle.open(tiny).file("other.onnx")
    only = {"pullback.ts": Artifact("torchscript", (), ())}
    scripted = dataclasses.replace(Bundle.open(tiny).manifest, artifacts=only, files={})
    with pytest.raises(SurgeonError, match="Export it again with --formats onnx"):
        Bundle(tiny, scripted).file("pullback.onnx")
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "exported" / "small")
    with pytest.raises(SurgeonError, match="Did you mean exported/small"):
        Bundle.open("small")


def test_staged_takes_the_place_of_an_old_bundle(tiny):
    with staged(tiny) as folder:
        assert folder.parent == tiny.parent and folder.name.startswith(".")
        (folder / MANIFEST).write_text("new")
        assert Bundle.open(tiny)  # the old one stands until the end
    assert contents(tiny) == {MANIFEST: b"new"}
    assert os.listdir(tiny.parent) == ["tiny"]


def test_staged_makes_folders_and_follows_a_link(tmp_path):
    with staged(tmp_path / "a" / "b" / "new") as folder:
        (folder / MANIFEST).write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "new")
    with staged(tmp_path / "link") as folder:
        (folder / MANIFEST).write_text("2")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "a") == {"b/new/manifest.json": b"2"}


@pytest.mark.parametrize(
    ("raised", "caught", "words"),
    [
        (KeyboardInterrupt("^C"), KeyboardInterrupt, "C"),
        (ValueError("wrong"), ValueError, "wrong"),
        (SurgeonError("named"), SurgeonError, "named"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            SurgeonError,
            "the disk is full: the bundle .* could not be written",
        ),
        (OSError(errno.EACCES, "Permission denied", "x.onnx"), SurgeonError, "Permission denied at x.onnx"),
    ],
)
def test_a_failure_leaves_all_as_it_was(tiny, tmp_path, raised, caught, words):
    before = contents(tmp_path)
    for place in (tiny, tmp_path / "deep" / "new"):
        with pytest.raises(caught, match=words), staged(place) as folder:
            (folder / "half").write_bytes(b"0" * 1000)
            raise raised
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["tiny"]


def test_a_full_disk_is_told_from_what_a_library_says(tiny, monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    with pytest.raises(SurgeonError, match="the disk is full"), staged(tiny):
        raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file")


def test_a_failing_rename_puts_the_old_bundle_back(tiny, monkeypatch):
    before, rename = contents(tiny), Path.rename

    def fails_once(path, target):
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(SurgeonError, match="Input/output error"), staged(tiny) as folder:
        (folder / MANIFEST).write_text("new")
    assert contents(tiny) == before
    assert os.listdir(tiny.parent) == ["tiny"]


def test_sigterm_cleans_up_and_signals_wait_for_the_renames(tiny, monkeypatch):
    before, rename = contents(tiny), Path.rename
    with pytest.raises(SystemExit) as caught, staged(tiny):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert contents(tiny) == before

    def interrupted(path, target):
        signal.raise_signal(signal.SIGINT)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(tiny) as folder:
        (folder / MANIFEST).write_text("new")
    assert contents(tiny) == {MANIFEST: b"new"}
    assert os.listdir(tiny.parent) == ["tiny"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_no_bundle_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("photos", "file"):
        with pytest.raises(SurgeonError, match="Choose another folder"), staged(tmp_path / name):
            pass
    with staged(tmp_path / "empty") as folder:
        (folder / MANIFEST).write_text("")
    assert contents(tmp_path) == {"empty/manifest.json": b"", "file": b"", "photos/cat.jpg": b""}
