"""Pictures of graphs: what they hold, that names stay text, and that a browser draws the page without an error."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

from surgeon.analysis.inspect.diagram import draw, page, svg
from surgeon.analysis.inspect.diagram.layout import GEOMETRY, lay_out, shown
from surgeon.analysis.inspect.diagram.tree import ROWS, Diagram, build, opened
from surgeon.analysis.inspect.inspection import inspect
from surgeon.errors import SurgeonError

DIGITS = Path(__file__).resolve().parents[2] / "exported" / "digits"
EVIL = "</script><img src=x onerror=console.error(1)>&\"'\x1b\x00"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def saved(path: Path, nodes: list[onnx.NodeProto], last: str) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def chain(path: Path, names: list[str]) -> Path:
    tensors = ["x", *(f"t{place}" for place in range(len(names)))]
    nodes = [helper.make_node("Relu", tensors[n : n + 1], tensors[n + 1 : n + 2], name) for n, name in enumerate(names)]
    return saved(path, nodes, tensors[-1])


def residual(path: Path, evil: str = "") -> Path:
    """Two blocks; the first's input skips its two layers, and one relu is called twice."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "/stem/Relu"),
        helper.make_node("Abs", ["a"], ["b"], f"/body/body.0/one{evil}/Abs"),
        helper.make_node("Relu", ["b"], ["c"], "/body/body.0/relu/Relu"),
        helper.make_node("Neg", ["c"], ["d"], "/body/body.0/two/Neg"),
        helper.make_node("Add", ["a", "d"], ["e"], "/body/body.0/Add"),
        helper.make_node("Relu", ["e"], ["f"], "/body/body.0/relu/Relu_1"),
        helper.make_node("Abs", ["f"], ["g"], "/body/body.1/one/Abs"),
    ]
    return saved(path, nodes, "g")


def edges_of(diagram: Diagram, open_groups: set[int]) -> set[tuple[str, str, str]]:
    groups = diagram.groups
    visible = {(shown(diagram, open_groups, a), shown(diagram, open_groups, b), kind) for a, b, kind in diagram.edges}
    return {(groups[a].short, groups[b].short, kind) for a, b, kind in visible if a != b}


def test_modules_become_a_tree_in_order_of_use(tmp_path: Path) -> None:
    diagram = build(inspect(residual(tmp_path / "net.onnx")))
    groups = diagram.groups
    names = {number: group.short for number, group in enumerate(groups)}
    assert [names[n] for n in groups[0].children] == ["x", "stem", "body", "g"]
    body = groups[groups[0].children[2]]
    assert [names[n] for n in body.children] == ["body.0", "body.1.one"]
    block = groups[body.children[0]]
    assert [names[n] for n in block.children] == ["one", "relu", "two", "Add", "relu"]
    assert block.left == "Relu 2, Abs, Neg, Add" and block.shape == "3"


def test_residual_branches_are_edges(tmp_path: Path) -> None:
    diagram = build(inspect(residual(tmp_path / "net.onnx")))
    assert edges_of(diagram, {0}) == {("x", "stem", "forward"), ("stem", "body", "forward"), ("body", "g", "forward")}
    every = set(range(len(diagram.groups)))
    assert ("stem", "Add", "forward") in edges_of(diagram, every)
    layout = lay_out(diagram, every)
    assert [one.arc for one in layout.edges].count(True) == 1  # the skip; all others go straight down
    assert len(layout.edges) == 9 and len(layout.frames) == 2


def test_every_node_is_in_the_picture_once() -> None:
    for name in ("pullback.onnx", "ascent_step.onnx"):
        diagram = build(inspect(DIGITS / name))
        leaves = [group for group in diagram.groups if not group.children]
        nodes = [node.name for group in leaves for node in (*group.forward, *group.backward)]
        file = onnx.load(DIGITS / name, load_external_data=False)
        assert sorted(nodes) == sorted(node.name for node in file.graph.node)
        roles = [
            {entry.key: entry.value for entry in node.metadata_props}.get("surgeon.role") for node in file.graph.node
        ]
        forward = roles.count("forward") + roles.count(None)  # those without a role read sizes for the forward pass
        whole = diagram.groups[0]
        assert forward >= 10 and (len(whole.forward), len(whole.backward)) == (forward, len(nodes) - forward)


def test_a_pullback_flows_down_and_up_again() -> None:
    inspection = inspect(DIGITS)
    diagram = build(inspection)
    found = edges_of(diagram, opened(diagram))
    assert {
        ("input", "features.0", "forward"),
        ("features.0", "features.2", "forward"),
        ("features.0", "features.2", "saved"),  # what the gate reads
        ("features.2", "features.0", "backward"),
        ("features.0", "input", "backward"),
        ("output", "head", "backward"),  # the end below: the cotangent
        ("head", "output", "forward"),
    } <= found
    gates = {group.name: group.gates for group in diagram.groups if group.gates and group.kind == "module"}
    assert gates["features.2"] == "soft T 0.3" and gates["features"] == "5 soft, T 0.3"
    assert not any({"temperature", "Shape"} & set(edge) for edge in found)  # numbers are no activations
    assert ("input", "features.10", "saved") not in found  # which reads the batch's size alone
    text = svg.render(diagram, opened(diagram))
    for words in ("forward ↓", "backward ↑", "soft T 0.3", "16 × 32 × 32", "885 k", "cotangent"):
        assert words in text
    top, bottom = (diagram.groups[diagram.groups[0].children[end]] for end in (0, -1))
    assert (top.short, top.right) == ("input", "pullback")
    assert (bottom.short, bottom.right) == ("output", "cotangent, temperature")


def test_rows_do_not_overlap_and_frames_hold_theirs() -> None:
    diagram = build(inspect(DIGITS))
    for open_groups in ({0}, opened(diagram), set(range(len(diagram.groups)))):
        layout = lay_out(diagram, open_groups)
        tops = sorted(layout.rows.values())
        assert all(below - above >= GEOMETRY["row"] for above, below in itertools.pairwise(tops))
        assert tops[-1] + GEOMETRY["row"] < layout.height
        for number, top, bottom, _ in layout.frames:
            for child in diagram.groups[number].children:
                assert child not in layout.rows or top < layout.rows[child] < bottom - GEOMETRY["row"]


def test_how_far_modules_are_opened(tmp_path: Path) -> None:
    names = [f"/block/block.{n // 10}/layer{n % 10}/Relu" for n in range(120)]
    diagram = build(inspect(chain(tmp_path / "deep.onnx", names)))
    assert len(lay_out(diagram, opened(diagram)).rows) <= ROWS
    assert len(lay_out(diagram, opened(diagram, depth=1)).rows) == 3
    assert len(lay_out(diagram, opened(diagram, depth=2)).rows) == 2 + 12
    assert len(lay_out(diagram, opened(diagram, depth=3)).rows) == 2 + 120
    shut = opened(diagram, depth=1)
    named = opened(diagram, depth=1, pattern="block.7")
    assert {diagram.groups[n].name for n in named - shut} == {"block", "block.7"}
    with pytest.raises(SurgeonError, match="called 'stem'"):
        opened(diagram, pattern="stem")


def test_a_graph_of_thousands_of_nodes_stays_small(tmp_path: Path) -> None:
    path = chain(tmp_path / "flat.onnx", [f"n{number}" for number in range(5000)])
    diagram = build(inspect(path))
    assert len(lay_out(diagram, opened(diagram)).rows) < 100
    assert max(len(group.children) for group in diagram.groups) <= 80
    draw(inspect(path), tmp_path / "flat.html")
    assert (tmp_path / "flat.html").stat().st_size < 2e6


def test_names_stay_text(tmp_path: Path) -> None:
    inspection = inspect(residual(tmp_path / "net.onnx", EVIL.replace("/", "")))
    diagram = build(inspection)
    every = set(range(len(diagram.groups)))
    root = ElementTree.fromstring(svg.render(diagram, every))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {
        "svg", "style", "defs", "marker", "path", "rect", "text", "g",
    }  # fmt: skip
    assert any("<script><img" in (element.text or "") for element in root.iter())
    text = page.render(diagram, every)
    assert "<img" not in text and text.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert any("<script><img" in group["short"] for group in data["groups"])


def test_the_page_needs_nothing_else() -> None:
    diagram = build(inspect(DIGITS))
    text = page.render(diagram, {0})
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text) and "{{" not in text
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text


def test_a_failed_picture_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder.svg"
    (target / "full").mkdir(parents=True)
    with pytest.raises(SurgeonError, match="cannot be written"):
        draw(inspect(DIGITS), target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]
    empty = tmp_path / "empty.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), empty)
    with pytest.raises(SurgeonError, match="nothing to draw"):
        draw(inspect(empty), tmp_path / "empty.svg")


# ---- in a browser

VISIT = """
const seen = [], told = () => document.querySelector("#panel h2").textContent;
const label = (row) => row.getAttribute("aria-label"), all = () => [...document.querySelectorAll("[role=treeitem]")];
const rows = () => all().map((row) => label(row).split(",")[0]);
const find = (name) => all().find((row) => label(row).startsWith(name));
const key = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const pointer = (kind, target, clientX) =>
  target.dispatchEvent(new PointerEvent(kind, { bubbles: true, clientX, clientY: 9, pointerId: 1 }));
key("c");
seen.push(rows());
key("ArrowDown"); key("ArrowDown");
seen.push(told());
key("ArrowRight");
seen.push(rows());
pointer("pointermove", find("features.4"), 5);
seen.push([...document.querySelectorAll("#panel td:first-child")].map((cell) => cell.firstChild.textContent));
pointer("pointerdown", find("features,"), 5); pointer("pointerup", find("features,"), 5);
seen.push(rows());
const before = document.getElementById("view").getAttribute("transform");
pointer("pointerdown", find("head"), 5); pointer("pointermove", find("head"), 50);
pointer("pointerup", find("head"), 50);
seen.push(rows().length, before !== document.getElementById("view").getAttribute("transform"));
key("+");
seen.push(Number(document.getElementById("view").getAttribute("transform").match(/scale\\((.*)\\)/)[1]) > 1);
key("0"); key("e");
seen.push(rows().length);
console.log("SEEN" + JSON.stringify(seen) + "SEEN");
"""


def console(file: Path, tmp_path: Path) -> list[str]:
    """What Chromium's console says of the page."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        "--window-size=1400,1600", f"--user-data-dir={tmp_path / 'profile'}", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "treeitem" in done.stdout, done.stderr
    return [line.partition("CONSOLE")[2] for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_draws_the_page_and_modules_open(tmp_path: Path) -> None:
    file = tmp_path / "graph.html"
    draw(inspect(DIGITS), file)
    assert console(file, tmp_path) == []
    visit = f'<script type="module">{VISIT}</script></body>'
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", visit), encoding="utf-8")
    (said,) = console(file, tmp_path)
    inside = [f"features.{number}" for number in (0, 2, 3, 4, 6, 7, 8, 10)]
    closed = ["input", "Shape", "features", "ReduceMean", "head", "temperature", "output"]
    assert json.loads(said.split("SEEN")[1].replace('\\"', '"')) == [
        closed,
        "features",
        [*closed[:3], *inside, *closed[3:]],
        ["Conv", "Transpose", "Slice", "Conv"],
        closed,
        len(closed),
        True,
        True,
        len(closed) + len(inside),
    ]


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_takes_names_for_text(tmp_path: Path) -> None:
    file = tmp_path / "graph.html"
    draw(inspect(residual(tmp_path / "net.onnx", EVIL.replace("/", ""))), file)
    assert console(file, tmp_path) == []
