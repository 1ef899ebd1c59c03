"""The result of one `surgeon run` ascent, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.cli.reports.tables import table

if TYPE_CHECKING:
    from rich.console import Console


def show(console: Console, result: dict[str, Any]) -> None:
    """The photo's most probable classes before and after, side by side, and the scores."""
    from rich.text import Text

    target, unit, score = result["target"], result.get("unit"), result["score"]
    towards = f" → {target['label']} ({target['index']})" if target else ""
    if unit:
        name = f" ({unit['label']})" if "label" in unit else ""
        towards = f" → {unit['layer'] or 'output'} unit {','.join(map(str, unit['place']))}{name}"
    console.print(Text(result["photo"] + towards, style="bold"), soft_wrap=True)
    if result["before"]:

        def cells(entry: dict[str, Any]) -> list[Text | str]:
            chosen = target is not None and entry["index"] == target["index"]
            return [Text(entry["label"], "green" if chosen else ""), f"{100 * entry['probability']:.1f} %"]

        pairs = zip(result["before"], result["after"], strict=True)
        heads = ("before", "", f"after {len(score) - 1} steps", " ")
        console.print(table("", heads, [[*cells(before), *cells(after)] for before, after in pairs], right=("", " ")))
    console.print(f"score {score[0]:.4g} → {score[-1]:.4g}\n", style="dim")
