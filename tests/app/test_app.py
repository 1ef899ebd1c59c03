"""The site that runs ascents in a browser: what is in it, who may see it, and that it computes what Python does."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy
import onnx
import PIL.Image
import PIL.ImageDraw
import pytest

import surgeon.app
from surgeon.app import Server, site, vendored, write_site
from surgeon.app.policy import CONTENT_SECURITY_POLICY
from surgeon.bundle.manifest import Image
from surgeon.cli import invoke
from surgeon.errors import SurgeonError
from surgeon.runtime.photos import fit, load_photo
from surgeon.runtime.pictures import difference, heat
from tests.tiny_bundle import write_tiny

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "exported" / "digits"
DIGIT = ROOT / "exported" / "digit.png"
PAGE = Path(surgeon.app.__file__).parent / "page"
NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like onnxruntime-web."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in vendored.FILES:
        (folder / name).write_text(f"/*!\n * ONNX Runtime Web v{vendored.VERSION}\n */")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Path:
    folder = tmp_path_factory.mktemp("written") / "site"
    write_site(folder, [DIGITS], [DIGIT], "Digits & <more>", stand_in)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the site


def test_what_is_in_a_site(written: Path) -> None:
    names = set(files_of(written))
    assert names >= {path.name for path in PAGE.iterdir()}
    assert {name for name in names if name.startswith("runtime/")} == {
        "runtime/LICENSE",
        *(f"runtime/{name}" for name in vendored.FILES),
    }
    assert {name for name in names if name.startswith("models/")} == {
        f"models/digits/{name}" for name in ("ascent_step.onnx", "weights.bin", "model.json", "photos/digit.png")
    }
    told = json.loads((written / site.MARK).read_text())
    assert told == {
        "title": "Digits & <more>",
        "models": [{"name": "digits", "title": "digits"}],
        "photos": [{"name": "digit", "file": "digit.png"}],
    }
    model = json.loads((written / "models/digits/model.json").read_text())
    assert model["labels"][7] == "seven" and model["hardens"] and model["weights"] == ["weights.bin"]
    assert model["defaults"] == {"temperature": 0.3, "step_size": 20.0, "radius": 100.0, "steps": 5}
    assert model["limits"] == {
        "steps": [1, 1000],
        "step_size": [1, None],
        "radius": [10, None],
        "temperature": [0.01, None],
    }
    assert "gates" not in model and "verification" not in model


def test_examples_are_what_a_run_starts_from(written: Path) -> None:
    image = Image(**json.loads((written / "models/digits/model.json").read_text())["image"])
    stored = written / "models/digits/photos/digit.png"
    assert numpy.array_equal(load_photo(stored, image), load_photo(DIGIT, image))


def test_the_step_takes_every_input_and_keeps_its_weights(written: Path) -> None:
    model = onnx.load(written / "models/digits/ascent_step.onnx")
    inputs, stored = {port.name for port in model.graph.input}, {tensor.name for tensor in model.graph.initializer}
    assert {"temperature", "step_size", "radius"} <= inputs and not inputs & stored
    assert (written / "models/digits/weights.bin").read_bytes() == (DIGITS / "weights.bin").read_bytes()


def test_the_policy_lets_the_page_load_from_its_own_host_alone() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    sources = {source for rule in rules.values() for source in rule.split()}
    assert sources == {"'self'", "'wasm-unsafe-eval'", "blob:", "data:"}


def test_the_page_runs_nothing_but_its_own_files(written: Path) -> None:
    text = (written / "index.html").read_text()
    assert f'http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}"' in text
    assert "<title>Digits &amp; &lt;more&gt;</title>" in text and "{{" not in text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert [*re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)] == [""]
    for name in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert (written / name).is_file(), name
    for script in PAGE.glob("*.js"):
        source = script.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|\beval\b|new Function", source), script.name
        for name in re.findall(r'(?:from |import\(|Worker\()"(?:\./)?([^"]+)"', source):
            assert (written / name).is_file(), name


def test_every_file_of_the_page_is_small_and_says_what_it_is() -> None:
    for script in PAGE.glob("*.js"):
        lines = script.read_text().splitlines()
        assert lines[0].startswith("// ") and len(lines) < 350, script.name


def test_models_of_one_name_are_numbered(tmp_path: Path, stand_in: Path) -> None:
    bundles = [write_tiny(tmp_path / where / "tiny net") for where in ("a", "b")]
    write_site(tmp_path / "site", bundles, runtime=stand_in)
    assert sorted(path.name for path in (tmp_path / "site/models").iterdir()) == ["tiny-net", "tiny-net-2"]
    assert site.unique(["a/b", "A.b", "..", "a-b"]) == ["a-b", "A.b", "unnamed", "a-b-2"]


# ---- refusals, each one line


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `surgeon app` says on standard error; it must be one line, and there must be no site."""
    assert invoke(["app", *map(str, arguments)]) in (1, 2)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    return said.err


def test_bundles_that_a_page_cannot_run(tmp_path: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("-o", tmp_path / "site", "--runtime", stand_in)
    assert "is energy" in refusal(capsys, write_tiny(tmp_path / "energy", objective="energy"), *common)
    changes = {
        "no ascent_step.onnx": lambda told: told["artifacts"].pop("ascent_step.onnx"),
        "is not a picture": lambda told: told.update(image=None),
        "goes upwards": lambda told: told["defaults"].update(step_size=-5.0),
        "takes mask beside": lambda told: told["extra_inputs"].append(other) or widen(told),
        "no row of classes": lambda told: told["layers"].append(
            {"name": "a", "kind": "module", "shape": [5], "start": 0}
        ),
    }
    other = {"name": "mask", "dtype": "float32", "shape": ["N", 1], "meaning": "", "default": None}

    def widen(told: dict) -> None:
        told["artifacts"]["ascent_step.onnx"]["inputs"].append(other)

    for number, (words, change) in enumerate(changes.items()):
        folder = write_tiny(tmp_path / f"changed{number}")
        told = json.loads((folder / "manifest.json").read_text())
        change(told)
        (folder / "manifest.json").write_text(json.dumps(told))
        assert words in refusal(capsys, folder, *common)
    assert "does not exist" in refusal(capsys, tmp_path / "nowhere", *common)
    assert "Name a BUNDLE" in refusal(capsys, *common)
    assert "is not a site" in refusal(capsys, "--serve", "-o", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_failed_site_leaves_what_was_there(
    tmp_path: Path, stand_in: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "site"
    bundle = write_tiny(tmp_path / "tiny")
    assert invoke(["app", str(bundle), "-o", str(target), "--runtime", str(stand_in), "-q"]) == 0
    before = files_of(target)
    assert "not a picture" in refusal(
        capsys, bundle, "-o", target, "--runtime", stand_in, "--photo", ROOT / "README.md"
    )
    half = tmp_path / "half"
    shutil.copytree(stand_in, half)
    (half / vendored.FILES[-1]).unlink()
    assert "is no copy" in refusal(capsys, bundle, "-o", target, "--runtime", half)

    def broken(session: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site, "facts", broken)  # after most has been written
    assert "could not be written" in refusal(capsys, bundle, "-o", target, "--runtime", stand_in)
    assert files_of(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "site", "tiny"]
    assert "is not a site" in refusal(capsys, bundle, "-o", half, "--runtime", stand_in)


def test_a_folder_with_a_site_json_of_its_own_is_no_site(
    tmp_path: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "blog" / "site.json"
    mine.parent.mkdir()
    mine.write_text('{"title": "My blog"}')
    said = refusal(capsys, write_tiny(tmp_path / "tiny"), "-o", mine.parent, "--runtime", stand_in)
    assert "is not a site" in said and list(mine.parent.iterdir()) == [mine]


# ---- onnxruntime-web


def test_a_wrong_tarball_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.tgz"
    wrong.write_bytes(b"nothing")
    said = refusal(capsys, DIGITS, "-o", tmp_path / "site", "--runtime", wrong)
    assert "is not onnxruntime-web 1.30.0 as it was published" in said
    other = tmp_path / "other"
    other.mkdir()
    for name in vendored.FILES:
        (other / name).write_text("/* ONNX Runtime Web v1.0.0 */")
    assert "another version" in refusal(capsys, DIGITS, "-o", tmp_path / "site", "--runtime", other)
    assert not (tmp_path / "site").exists()


class Answer:
    """What urlopen gives."""

    def __init__(self) -> None:
        self.headers, self.parts = {"Content-Length": "5"}, [b"wrong", b""]

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, count: int) -> bytes:
        return self.parts.pop(0)


def test_what_the_registry_sends_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "https://registry.example/npm/")
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: asked.append(url) or Answer())
    arguments = (DIGITS, "-o", tmp_path / "site")
    assert "is not onnxruntime-web" in refusal(capsys, *arguments)
    assert asked == ["https://registry.example/npm/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"]
    monkeypatch.setenv("npm_config_registry", "http://registry.example")
    assert "not reached by https" in refusal(capsys, *arguments)
    assert not files_of(tmp_path)  # not in the cache either


def test_without_a_network_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "https://127.0.0.1:9/")
    said = refusal(capsys, DIGITS, "-o", tmp_path / "site")
    assert "cannot be fetched" in said and "--runtime" in said
    assert not files_of(tmp_path)


# ---- the server


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def server(written: Path) -> Iterator[Server]:
    with serving(written) as server:
        yield server


def ask(server: Server, path: str, host: str | None = None, method: str = "GET") -> http.client.HTTPResponse:
    address = urllib.parse.urlsplit(server.address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host or address.netloc})
        answer = connection.getresponse()
        answer.data = answer.read()
    finally:
        connection.close()
    return answer


def test_headers_and_types(server: Server) -> None:
    types = {
        "/": "text/html; charset=utf-8",
        "/main.js": "text/javascript; charset=utf-8",
        "/style.css": "text/css; charset=utf-8",
        "/runtime/ort.wasm.bundle.min.mjs": "text/javascript; charset=utf-8",
        "/runtime/ort-wasm-simd-threaded.wasm": "application/wasm",
        "/models/digits/ascent_step.onnx": "application/octet-stream",
        "/models/digits/photos/digit.png": "image/png",
    }
    for path, type in types.items():
        answer = ask(server, path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, type), path
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert answer.headers["Content-Security-Policy"].startswith(CONTENT_SECURITY_POLICY)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_else_is_answered(server: Server, written: Path, tmp_path: Path) -> None:
    secret = written.parent / "secret.txt"
    secret.write_text("secret")
    link = written / "link.txt"
    link.symlink_to(secret)
    paths = ("/models", "/models/", "/runtime/", "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt",
             "/link.txt", "//etc/passwd", "/nothing.js", "/models/digits/../../../secret.txt", "/%00",
             "/main.js/")  # fmt: skip
    for path in paths:
        answer = ask(server, path)
        assert answer.status == 404 and b"secret" not in answer.data, path
    link.unlink()
    assert ask(server, "/", host="evil.example").status == 403  # a name that somebody made lead here
    assert ask(server, "/", method="POST").status == 501
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(server: Server, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--serve", "-o", written, "--port", server.server_address[1])
    assert "cannot be served" in said


def test_ctrl_c_ends_it_quietly(written: Path) -> None:
    command = [sys.executable, "-m", "surgeon", "app", "--serve", "-o", str(written)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert re.search(r"http://127\.0\.0\.1:\d+/", line)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


# ---- the page's arithmetic, in node


@pytest.fixture(scope="module")
def in_node(tmp_path_factory: pytest.TempPathFactory):
    """Runs a script beside the page's modules, and returns the JSON that it prints."""
    if NODE is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("node")
    for script in PAGE.glob("*.js"):
        shutil.copy(script, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(script: str, **arrays: numpy.ndarray):
        for name, array in arrays.items():
            (folder / f"{name}.bin").write_bytes(array.tobytes())
        head = 'import { readFileSync } from "node:fs"; const bytes = (name) => readFileSync(`${name}.bin`);\n'
        (folder / "test.js").write_text(head + script)
        done = subprocess.run([NODE, "test.js"], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


LAYOUTS = [
    Image(height=32, width=32, resize=37),
    Image(height=24, width=24, resize=27, interpolation="bicubic"),
    Image(height=20, width=28, resize=23, interpolation="nearest"),
    Image(channels=1, height=40, width=33, resize=40, range=(0.0, 1.0), interpolation="bicubic"),
    Image(height=97, width=97, resize=110),
]


@pytest.mark.integration
@pytest.mark.parametrize("size", [(64, 48), (37, 91), (50, 50), (32, 32), (9, 170)])
def test_photos_are_resized_as_pillow_does(size: tuple[int, int], in_node, tmp_path: Path) -> None:
    width, height = size
    noise = numpy.random.default_rng(width).integers(0, 256, (height, width, 4), numpy.uint8)
    noise[..., 3] = 255
    photo = PIL.Image.fromarray(noise).convert("RGB")
    photo.save(tmp_path / "photo.png")
    layouts = [dict(vars(layout)) for layout in LAYOUTS]
    made = in_node(
        f"""
        import {{ plan, resample }} from "./resample.js";
        import {{ toInput }} from "./pictures.js";
        const pixels = new Uint8ClampedArray(bytes("photo"));
        console.log(JSON.stringify({json.dumps(layouts)}.map((image) => {{
          const planned = plan({width}, {height}, image), small = resample(pixels, {width}, {height}, planned, image);
          return {{ small: [...small], input: [...toInput(small, image)] }};
        }})));
        """,
        photo=noise,
    )
    for layout, found in zip(LAYOUTS, made, strict=True):
        small = numpy.array(found["small"], numpy.uint8).reshape(layout.height, layout.width, 4)
        assert numpy.array_equal(small[..., :3], numpy.asarray(fit(photo, layout))), layout
        expected = load_photo(tmp_path / "photo.png", layout)
        assert numpy.array_equal(numpy.array(found["input"], numpy.float32), expected.ravel()), layout


@pytest.mark.integration
def test_pictures_are_those_of_python(in_node) -> None:
    random = numpy.random.default_rng(0)
    clean, pullback = (random.uniform(-1, 1, (3, 6, 5)).astype(numpy.float32) for _ in range(2))
    perturbed = (clean + 0.3 * random.normal(size=clean.shape)).astype(numpy.float32)
    made = in_node(
        """
        import { difference, heat } from "./pictures.js";
        const image = { channels: 3, height: 6, width: 5, range: [-1, 1] };
        const read = (name) => new Float32Array(new Uint8Array(bytes(name)).buffer);
        const [clean, perturbed, pullback] = ["clean", "perturbed", "pullback"].map(read);
        console.log(JSON.stringify([
          difference(clean, perturbed, image), difference(clean, clean, image), heat(pullback, image),
        ].map((pixels) => [...pixels])));
        """,
        clean=clean,
        perturbed=perturbed,
        pullback=pullback,
    )
    wanted = [difference(clean, perturbed), difference(clean, clean), heat(pullback)]
    for found, expected in zip(made, wanted, strict=True):
        pixels = numpy.array(found, numpy.uint8).reshape(6, 5, 4)
        assert numpy.array_equal(pixels[..., :3], numpy.asarray(expected))


@pytest.mark.integration
def test_links_settings_and_search(in_node) -> None:
    made = in_node(
        """
        import { search } from "./classes.js";
        import { sentence, ticks } from "./curve.js";
        import { score, top } from "./scores.js";
        import { climbs, command, DIALS, fromHash, placeOf, toHash, valueAt, within } from "./settings.js";
        const values = { steps: 7, step_size: 12.5, radius: null, temperature: 0.3 };
        const chosen = { model: "a b", photo: "cat", target: 3, gates: "both", device: "auto", values };
        const labels = ["tench", "tiger cat", "tiger shark", "catamaran", "polecat"];
        const facts = { hardens: true, defaults: { temperature: 1 }, temperatures: null };
        console.log(JSON.stringify({
          link: toHash(chosen), back: fromHash(toHash(chosen)),
          nonsense: fromHash("#class=x&T=no&gates=odd&steps=1e9"),
          search: ["cat", "tiger c", "2", "zz", "1 - tiger cat"].map((text) => search(labels, text)),
          within: [[0, 5], [1e9, 1e9], [2.6, 3], [NaN, 0]].map(([value]) => within(DIALS[0], [1, 1000], value)),
          round: [0.01, 0.3, 1, 10].map((value) => valueAt(placeOf(value, 0.01, 10), 0.01, 10, false)),
          factor: ["soft", "hard"].map((gate) => command(chosen, { ...facts, temperatures: [1, 2] }, gate)),
          hard: climbs("both", 0.3), command: command({ ...chosen, photo: "my cat.jpg" }, facts, "soft"),
          score: [score([1, 3], 1, "logit"), score([1, 3], 1, "cross-entropy")], top: top([0, Math.log(3), 0], 2),
          ticks: ticks(-0.3, 1.2), sentence: sentence({ soft: [1, 2.34567] }),
        }));
        """
    )
    assert made["link"] == "#model=a+b&photo=cat&class=3&gates=both&steps=7&size=12.5&radius=none&T=0.3"
    values = {"steps": 7, "step_size": 12.5, "radius": None, "temperature": 0.3}
    assert made["back"] == {"model": "a b", "photo": "cat", "target": 3, "gates": "both", "values": values}
    assert made["nonsense"] == {"values": {"steps": 1e9}}  # which the limits cut
    assert made["search"] == [[3, 1, 4], [1], [2], [], [1]]
    assert made["within"] == [1, 1000, 3, None]
    assert made["round"] == [0.01, 0.3, 1, 10]
    assert made["hard"][1] == {"gate": "hard", "temperature": {"value": 1e-6, "fixed": True}}
    assert made["command"] == (
        "surgeon run a b 'my cat.jpg' --target 3 --steps 7 --step-size 12.5 --radius inf --temperature 0.3"
    )
    of_all, hard = made["factor"]  # of each gate's own temperature, which is no temperature of all
    assert not of_all and hard.endswith("--temperature 0.000001")
    assert made["score"] == pytest.approx([3, -numpy.log(1 + numpy.exp(-2))])
    assert made["top"] == [
        {"index": 1, "probability": pytest.approx(0.6)},
        {"index": 0, "probability": pytest.approx(0.2)},
    ]
    assert made["ticks"] == [0, 0.5, 1] and made["sentence"] == "soft: 1 → 2.346 after 1 step"


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    """Chromium, by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra `browser`")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def archive() -> Path:
    """onnxruntime-web itself, from the cache or the registry."""
    try:
        for _ in vendored.runtime(None):
            break
    except SurgeonError as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")
    return vendored.cache() / f"onnxruntime-web-{vendored.VERSION}.tgz"


class Visit:
    """A page that somebody looks at: what its console says, and what it asks for."""

    def __init__(self, browser, address: str, fragment: str = "", **context) -> None:
        from playwright.sync_api import expect

        self.expect, self.address = expect, address
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address + fragment)

    def status(self, words: str, seconds: float = 60) -> None:
        """Waits until the status says so."""
        self.expect(self.page.locator("#status")).to_have_text(re.compile(words), timeout=1000 * seconds)

    def shown(self) -> dict[str, str]:
        return {name: self.page.locator(f"#{name}").text_content() or "" for name in ("status", "refused", "runs-on")}

    def choose(self, text: str) -> None:
        """A class, by typing."""
        self.page.locator("#class").click()
        self.page.locator("#class").fill(text)
        self.page.keyboard.press("Enter")

    def saved(self, kind: str, gate: str = "soft") -> numpy.ndarray:
        """The picture that the page offers, as levels."""
        button = self.page.locator(f".result.{gate} .saves").get_by_role("button", name=f"Save {kind} ")
        with self.page.expect_download() as download:
            button.click()
        return levels(Path(download.value.path()))

    def close(self) -> None:
        """Nothing was wrong, and nothing came from elsewhere."""
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked if not url.startswith((self.address, f"blob:{self.address}"))] == []


def levels(path: Path) -> numpy.ndarray:
    with PIL.Image.open(path) as picture:
        return numpy.asarray(picture.convert("RGB")).astype(int)


def by_python(bundle: Path, photo: Path, folder: Path, *options: str) -> tuple[dict[str, numpy.ndarray], dict]:
    """The pictures that `surgeon run` writes, and what it says."""
    command = [sys.executable, "-m", "surgeon", "run", str(bundle), str(photo), "-o", str(folder), "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["photos"][0]
    return {kind: levels(Path(path)) for kind, path in told["files"].items()}, told


def draw(path: Path) -> Path:
    """A photo of two colours, not square, whose EXIF turns it."""
    photo = PIL.Image.new("RGB", (90, 61), "navy")
    pen = PIL.ImageDraw.Draw(photo)
    pen.ellipse((14, 9, 71, 50), fill="orange")
    pen.line((0, 60, 89, 0), fill="white", width=5)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
    return path


def agree(visit: Visit, expected: dict[str, numpy.ndarray], gate: str = "soft") -> None:
    for kind, wanted in expected.items():
        found = visit.saved("input" if kind == "clean" else kind, gate)
        apart = abs(found - wanted)
        assert found.shape == wanted.shape and apart.max() <= (0 if kind == "clean" else 2), (kind, apart.max())


@pytest.fixture(scope="module")
def digits_site(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("digits") / "site"
    write_site(folder, [DIGITS, write_tiny(tmp_path_factory.mktemp("b") / "tiny")], [DIGIT], runtime=archive)
    with serving(folder) as server:
        yield server


@pytest.mark.integration
def test_a_browser_draws_what_python_draws(browser, digits_site: Server, tmp_path: Path) -> None:
    visit = Visit(browser, digits_site.address)
    visit.status("Ready")
    assert visit.shown()["runs-on"].startswith("Runs on the CPU")
    visit.choose("seven")
    visit.status("Ready")
    visit.page.locator("#run").click()
    visit.status("Done: 5 steps")
    expected, told = by_python(DIGITS, DIGIT, tmp_path / "digit", "--target", "seven", "--steps", "5")
    agree(visit, expected)
    with visit.page.expect_download() as download:
        visit.page.locator("#save-settings").click()
    kept = json.loads(Path(download.value.path()).read_text())
    assert kept["score"]["soft"] == pytest.approx(told["score"], rel=1e-3)
    assert [entry["index"] for entry in kept["after"]["soft"]] == [entry["index"] for entry in told["after"]]
    assert kept["command"].startswith("surgeon run digits digit.png --target 7 --steps 5")

    photo = draw(tmp_path / "turned.png")  # a photo of one's own, under hard gates
    visit.page.locator("#file").set_input_files(photo)
    visit.expect(visit.page.locator("#photo-words")).to_contain_text("turned.png: 61 × 90")
    visit.page.get_by_text("Both", exact=True).click()
    visit.choose("3")
    visit.page.locator("#dial-steps").fill("3")
    visit.page.keyboard.press("Tab")
    visit.status("Ready")
    visit.page.locator("#run").click()
    visit.status("Done: 3 steps")
    for gate, temperature in (("soft", "0.3"), ("hard", "1e-6")):
        options = ("--target", "3", "--steps", "3", "--temperature", temperature)
        agree(visit, by_python(DIGITS, photo, tmp_path / gate, *options)[0], gate)
    visit.close()


@pytest.mark.integration
def test_wrong_files_get_messages_and_the_page_goes_on(browser, digits_site: Server, tmp_path: Path) -> None:
    text, corrupt, large, narrow = (tmp_path / name for name in ("text.png", "corrupt.png", "large.png", "narrow.png"))
    text.write_text("no picture")
    draw(corrupt)
    whole = corrupt.read_bytes()
    corrupt.write_bytes(whole[:60] + bytes(len(whole) - 60))
    PIL.Image.new("1", (8000, 7000)).save(large)
    PIL.Image.new("RGB", (600, 10)).save(narrow)
    visit = Visit(browser, digits_site.address)
    visit.status("Ready")
    words = {
        text: "text.png is not a picture",
        corrupt: "corrupt.png (is not a picture|cannot be read)",
        large: "large.png has 56 megapixels",
        narrow: "narrow.png is too elongated",
    }
    for file, said in words.items():
        visit.page.locator("#file").set_input_files(file)
        visit.expect(visit.page.locator("#refused")).to_have_text(re.compile(said))
    visit.page.get_by_role("button", name="Example photo digit").click()
    visit.expect(visit.page.locator("#refused")).to_be_hidden()
    visit.page.locator("#run").click()
    visit.status("Done: 5 steps")
    visit.close()


ARRIVE = """([kind, bytes]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
  const made = kind === "drop" ? new DragEvent("drop", { dataTransfer: carried, cancelable: true, bubbles: true })
    : new ClipboardEvent("paste", { clipboardData: carried, bubbles: true });
  document.body.dispatchEvent(made);
}"""


@pytest.mark.integration
def test_photos_arrive_by_drop_and_paste_and_keep_the_chosen_class(
    browser, digits_site: Server, tmp_path: Path
) -> None:
    visit = Visit(browser, digits_site.address)
    visit.status("Ready")
    visit.choose("nine")
    bytes = [*draw(tmp_path / "photo.png").read_bytes()]
    for kind in ("drop", "paste"):
        visit.page.evaluate(ARRIVE, [kind, bytes])
        visit.expect(visit.page.locator("#photo-words")).to_contain_text(f"{kind}.png: 61 × 90")
    visit.status("Ready")
    assert visit.page.locator("#class").input_value() == "9 - nine"
    left, width = (
        visit.page.locator("#crop").evaluate(f"crop => parseFloat(crop.style.{side})") for side in ("left", "width")
    )
    assert (left, width) == pytest.approx((100 * 2 / 37, 100 * 32 / 37), rel=1e-4)  # 61 x 90 becomes 37 x 54
    visit.page.evaluate("location.hash = '#model=digits&photo=digit&class=4&steps=2'")
    visit.expect(visit.page.locator("#class")).to_have_value("4 - four")
    visit.status("Ready")
    visit.page.locator("#run").click()
    visit.status("Done: 2 steps")
    visit.close()


@pytest.mark.integration
def test_a_link_restores_and_stop_stops(browser, digits_site: Server) -> None:
    link = "#model=digits&photo=digit&class=2&gates=hard&steps=1000&size=2.5&radius=none&T=0.7"
    visit = Visit(browser, digits_site.address, link, viewport={"width": 390, "height": 844})
    visit.status("Ready")
    page = visit.page
    assert page.locator("#class").input_value() == "2 - two"
    assert [page.locator(f"#dial-{name}").input_value() for name in ("steps", "step_size", "temperature")] == [
        "1000", "2.5", "0.7",
    ]  # fmt: skip
    assert page.get_by_role("radio", name="Hard").is_checked() and page.locator(".free input").is_checked()
    page.locator("#run").click()
    page.locator("#stop").click()
    visit.status("Stopped: ")
    assert page.url.endswith(link)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#model").select_option("tiny")
    visit.expect(page.locator("#class")).not_to_have_value("")
    visit.close()


@pytest.mark.integration
def test_another_model_takes_what_is_on_its_way(browser, digits_site: Server, tmp_path: Path) -> None:
    """The photo that is being read, and the pictures that still stand there, under their names."""
    PIL.Image.new("RGB", (5000, 4000), "navy").save(tmp_path / "large.png")
    visit = Visit(browser, digits_site.address, "#model=digits&photo=digit&class=2")
    visit.status("Ready")
    page = visit.page
    page.route("**/tiny/model.json", lambda route: None)  # it takes its time
    page.locator("#model").select_option("tiny")
    with page.expect_download() as download:
        page.locator(".saves button").first.click()
    assert download.value.suggested_filename == "digit.two.soft.pullback.png"
    page.unroute("**/tiny/model.json")
    page.evaluate("""() => {
      const later = Worker.prototype.postMessage; // the decoder, busy for ever with the first photo
      Worker.prototype.postMessage = function (told) { if (!told.file || asked++) later.call(this, told); };
      let asked = 0;
    }""")
    page.locator("#file").set_input_files(tmp_path / "large.png")
    page.wait_for_timeout(500)
    page.locator("#model").select_option("digits")
    visit.expect(page.locator("#photo-words")).to_contain_text("large.png: 5000")
    visit.status("Ready")
    visit.close()


@pytest.mark.integration
def test_by_keyboard_alone(browser, digits_site: Server) -> None:
    visit = Visit(browser, digits_site.address)
    visit.status("Ready")
    page = visit.page
    page.locator("#class").focus()
    page.keyboard.type("fi")
    assert page.locator("#class").get_attribute("aria-expanded") == "true"
    active = page.locator("#class").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").text_content() == "5 five"
    page.keyboard.press("Escape")
    assert page.locator("#class-list").is_hidden()
    before = page.locator("#class").input_value()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#class").input_value() != before
    page.get_by_label("Steps", exact=True).and_(page.locator("[type=range]")).focus()
    page.keyboard.press("End")
    assert page.locator("#dial-steps").input_value() == "1000"
    page.locator("#dial-steps").fill("1")
    page.keyboard.press("Enter")
    visit.status("Done: 1 step")
    compare = page.locator(".compare input").first
    compare.focus()
    page.keyboard.press("Home")
    assert page.locator(".compare").first.get_attribute("style") == "--cut: 0%;"
    visit.close()


@pytest.mark.integration
def test_without_headers_it_runs_on_one_thread(browser, digits_site: Server) -> None:
    import functools
    import http.server

    class HostSession(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(HostSession, directory=str(digits_site.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as plain:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        visit = Visit(browser, f"http://127.0.0.1:{plain.server_address[1]}/")
        visit.status("Ready")
        assert "one thread" in visit.shown()["runs-on"]
        visit.page.locator("#run").click()
        visit.status("Done: 5 steps")
        visit.close()
        plain.shutdown()


@pytest.mark.integration
@pytest.mark.slow
def test_a_real_network_in_a_browser(browser, archive: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite0 with its ImageNet weights, on a photo of scikit-image."""
    skimage = pytest.importorskip("skimage", reason="scikit-image is not installed: the extra `demo`")
    pytest.importorskip("efficientnet_lite_pytorch", reason="its weights are not installed: the extra `demo`")
    cat, bundle = Path(skimage.__file__).parent / "data" / "chelsea.png", tmp_path / "lite0"
    assert invoke(["export", "efficientnet_lite0", "--formats", "onnx", "-o", str(bundle), "--quiet"]) == 0
    write_site(tmp_path / "site", [bundle], runtime=archive)
    with serving(tmp_path / "site") as server:
        visit = Visit(browser, server.address)
        visit.status("Ready")
        visit.page.locator("#file").set_input_files(cat)
        visit.expect(visit.page.locator("#outputs .bar").first).to_be_visible(timeout=20_000)
        visit.choose("lynx")
        visit.status("Ready")
        visit.page.locator("#run").click()
        visit.status("Done: 5 steps")
        print(visit.shown()["runs-on"], visit.shown()["status"])
        agree(visit, by_python(bundle, cat, tmp_path, "--target", "lynx", "--steps", "5")[0])
        visit.close()
