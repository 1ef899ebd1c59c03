"""Types of options that commands share, and options in groups."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from surgeon.cli import options
from surgeon.cli.export import command as export

COLOURS = options.CommaList(click.Choice(["red", "blue", "black"]), "COLOUR,...", unique=True, words={"all": ("red",)})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.SHAPE, "3,224,224", (3, 224, 224)),
        (options.SHAPE, "10", (10,)),
        (options.SHAPE, "3, 8,8", (3, 8, 8)),
        (COLOURS, "blue,red,blue", ("blue", "red")),
        (COLOURS, "all", ("red",)),
        (options.CommaList(options.number(above=0), "T,...", ascending=True), "3,0.5,3", (0.5, 3.0)),
        (options.CommaList(click.IntRange(min=0), "N,..."), "3,0,3", (3, 0, 3)),
    ],
)
def test_values_between_commas(kind: options.CommaList, text: str, value: tuple[object, ...]) -> None:
    assert kind.convert(text, None, None) == value
    assert kind.convert(value, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (options.SHAPE, "3,0", "'0' is not a size. Write a shape such as 3,224,224 (without the batch)."),
        (options.SHAPE, "", "'' is not a size"),
        (COLOURS, "red,green", "'green' is not one of 'red', 'blue', 'black'"),
        (options.CommaList(options.number(above=0), "T,..."), "1,0", "0 is not above 0"),
    ],
)
def test_what_is_no_list_is_refused(kind: options.CommaList, text: str, message: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        kind.convert(text, None, None)
    assert message in refused.value.message


def test_a_shell_completes_the_last_of_several() -> None:
    param = click.Option(["--colour"], type=COLOURS)
    context = click.Context(click.Command("paint"))

    def completed(typed: str) -> list[str]:
        return [item.value for item in COLOURS.shell_complete(context, param, typed)]

    assert completed("bl") == ["blue", "black"]
    assert completed("red,bl") == ["red,blue", "red,black"]
    assert completed("a") == ["all"]


def test_options_stand_under_their_headings() -> None:
    text = CliRunner().invoke(export, ["--help"]).output
    headings = ["The network", "Gates", "The ascent", "The files", "Verification", "Options"]
    places = [text.index(f"\n{heading}:\n") for heading in headings]
    assert places == sorted(places)
    sections = dict(zip(headings, (text[a:b] for a, b in zip(places, [*places[1:], None], strict=True)), strict=True))
    known = {"--at": "The network", "--gate-scope": "Gates", "--norm": "The ascent", "--opset": "The files"}
    for option, heading in (known | {"--tolerance": "Verification", "--json": "Options"}).items():
        assert [name for name, section in sections.items() if f"  {option} " in section] == [heading]
