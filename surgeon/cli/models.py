"""`surgeon models`: the names that `surgeon export` takes."""

from __future__ import annotations

import click

from surgeon.cli import options


@click.command("models", short_help="List the models that can be named.")
@click.argument("pattern", default="*")
@options.as_json
def command(pattern: str, as_json: bool) -> None:
    r"""List the models whose name fits PATTERN: a part of a name, or shell wildcards.

    Networks whose gates are "none" convert too, but their pullback is the ordinary gradient. Those that take
    3,FRAMES,HEIGHT,WIDTH are for films, in [-1, 1] as pictures are. Your own networks go as `package.module:factory`.

    \b
    surgeon models
    surgeon models resnet
    surgeon models 'vgg*_bn' --json
    """
    import dataclasses

    from surgeon.cli import screen
    from surgeon.network.catalogue import models

    found = models(pattern)
    if as_json:
        screen.print_json({"models": [dataclasses.asdict(model) for model in found]})
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "gates"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "input", "T"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("weights", overflow="fold")
    for model in found:
        size = f"{model.parameters / 1e6:.1f} M"
        weights = f"{', '.join(model.weights)} ({model.origin})"
        table.add_row(
            model.name, model.gates, size, ",".join(map(str, model.input_shape)), f"{model.temperature:g}", weights
        )
    screen.console().print(table)
