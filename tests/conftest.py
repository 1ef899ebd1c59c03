"""Fixtures for all tests: the sample bundle, and bundles that are exported once for the whole run."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import hypothesis
import pytest

# Under xdist each worker would start a thread per core of its own; set before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Operators are traced and compiled within an example, so its time says nothing; the same examples on every run.
hypothesis.settings.register_profile("surgeon", deadline=None, derandomize=True, database=None, max_examples=20)
hypothesis.settings.load_profile("surgeon")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread_in_each_worker() -> Iterator[None]:
    """ONNX Runtime's sessions have one thread each under xdist: more would spin as they wait."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import onnxruntime

    class Options(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", Options)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def digits_bundle() -> Path:
    """The sample bundle that comes with the repository."""
    return REPOSITORY / "exported" / "digits"


@pytest.fixture(scope="session")
def digit_photo() -> Path:
    """A handwritten digit for the sample bundle."""
    return REPOSITORY / "exported" / "digit.png"


class Exported:
    """Bundles that any test may read and none may change: each is exported once, by the first worker that asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        network: str | Callable[[], Any],
        *,
        defaults: Any = None,
        formats: tuple[str, ...] = ("onnx",),
        check: bool = False,
        options: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> Path:
        """The bundle of `network`, a name for surgeon or a factory at the top level of a module, and Recipe(**recipe).

        A factory returns a module or a Source, and must return the same one at every call. `options` are further
        arguments of `surgeon.export`. Not verified and without TorchScript, unless a test asks for them.
        """
        by_name = isinstance(network, str)
        name = network if isinstance(network, str) else f"{network.__module__}:{network.__qualname__}"
        assert "<" not in name, f"{name} cannot be told from another of its name"
        arguments = (name, by_name, defaults, formats, check, sorted((options or {}).items()), sorted(recipe.items()))
        key = hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]
        bundle = self.folder / f"{name.rpartition(':')[2].rpartition('.')[2]}-{key}"
        if not bundle.is_dir():
            with filelock.FileLock(bundle.with_suffix(".lock")):
                if not bundle.is_dir():
                    from surgeon import Recipe
                    from surgeon.exporting import export

                    source, choices = network if isinstance(network, str) else network(), options or {}
                    export(source, bundle, Recipe(**recipe), defaults, formats=formats, check=check, **choices)
        return bundle


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Bundles that are shared by the whole run; see `Exported`. A test that changes one takes a copy of `copied`."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    return Exported(folder)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies of bundles, for tests that change them."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / "copies" / bundle.name))

    return copy


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in a folder with the photo cat.png: exit code, standard output, standard error."""
    import numpy
    import PIL.Image

    from surgeon import cli

    pixels = numpy.random.default_rng(0).integers(0, 256, (12, 16, 3), numpy.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.invoke([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call
