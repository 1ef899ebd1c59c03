"""The sweep's list and table; the sweep itself takes hours."""

from __future__ import annotations

import json
from pathlib import Path

from tests.sweep import Entry, entries, recorded, table


def test_the_list_names_each_model_once() -> None:
    listed = entries()
    assert len({entry.name for entry in listed}) == len(listed) > 200
    assert {entry.kind for entry in listed} == {"ReLU", "ReLU + SE", "ReLU + attention", "smooth"}
    (film,) = [entry for entry in listed if entry.model == "s3d"]
    assert film.shape == (3, 16, 224, 224)


def test_the_last_result_counts_and_nothing_is_hidden(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    lines = [
        {"source": "timm", "model": "a", "passed": False, "reason": "over 900 s"},
        {"source": "timm", "model": "a", "passed": True, "artifact": 2e-6, "commit": "abc1234"},
        {"source": "timm", "model": "b", "passed": False, "reason": "ConversionError: no pullback rule"},
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    listed = [Entry("timm", "ReLU", name, (3, 64, 64), 1.5) for name in "abc"]
    written = table(listed, recorded(results))
    assert "| timm | ReLU | 3 | 2 | 1 | 2.0e-06 |" in written
    assert "- timm b: ConversionError: no pullback rule" in written
    assert "timm c (1.5 M)." in written
    assert "| timm a | ReLU | 1.5 | 3×64×64 | 2.0e-06 | abc1234 |" in written
