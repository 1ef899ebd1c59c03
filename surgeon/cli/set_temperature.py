"""`surgeon set-temperature`: another default temperature for a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import click

from surgeon.cli import options
from surgeon.errors import SurgeonError

EXAMPLES = """\b
Examples:
  surgeon set-temperature exported/lite0 0.5
  surgeon set-temperature exported/lite0-gates temperatures.json"""


def _value(text: str) -> float | Path:
    """A number, or the path of a JSON file."""
    return Path(text) if Path(text).suffix == ".json" else options.number(above=0)(text)


@click.command("set-temperature", epilog=EXAMPLES)
@options.bundle
@click.argument("temperature", type=_value, metavar="T|FILE.json")
@options.silent
@options.as_json
def command(bundle: Path, temperature: float | Path, quiet: bool, as_json: bool) -> None:
    """Write T into BUNDLE as the default temperature of its gates, in its manifest and in every artifact.

    FILE.json is a list with a number for each gate, in the manifest's order (`surgeon inspect BUNDLE --show gates`), of
    a bundle that was exported with --temperature-input per-gate; there, a single T is for all gates.
    """
    from surgeon.bundle.default_temperature import set_temperature
    from surgeon.bundle.folder import Bundle
    from surgeon.cli import screen
    from surgeon.cli.reports import calibration_report

    opened = Bundle.open(bundle)
    value = _read(temperature) if isinstance(temperature, Path) else temperature
    set_temperature(opened, value)
    if as_json:
        screen.print_json({"bundle": str(bundle), "written": value})
    elif not quiet:
        calibration_report.print_next(screen.console(), bundle, value, written=True)


def _read(path: Path) -> tuple[float, ...]:
    """The numbers in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SurgeonError(
            f"{path} cannot be read ({error})", "Write a JSON list with a number for each gate"
        ) from error
    if not (isinstance(values, list) and all(type(value) in (int, float) for value in values)):
        raise SurgeonError(f"{path} holds no list of numbers", "Write a JSON list, a number for each gate")
    return tuple(map(float, values))
