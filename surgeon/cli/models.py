"""`surgeon models`: the names that `surgeon export` takes."""

from __future__ import annotations

import click

from surgeon.cli import options

EXAMPLES = """\b
Examples:
  surgeon models
  surgeon models resnet
  surgeon models 'vgg*_bn' --json"""


@click.command("models", epilog=EXAMPLES, short_help="List the models that can be named.")
@click.argument("pattern", default="*")
@options.as_json
def command(pattern: str, as_json: bool) -> None:
    """List the models whose name fits PATTERN: a part of a name, or shell wildcards.

    Networks whose gates are "none" convert too, but their pullback is the ordinary gradient. Those that take
    3,FRAMES,HEIGHT,WIDTH are for films, in [-1, 1] as pictures are. Name your own networks `package.module:factory`.
    """
    import dataclasses

    from surgeon.cli import screen
    from surgeon.cli.reports.tables import Column, table_of
    from surgeon.network.catalogue import models

    matching = models(pattern)
    if as_json:
        screen.print_json({"models": [dataclasses.asdict(model) for model in matching]})
        return
    columns = (
        Column("name", lambda model: model.name, wrap=False),
        Column("gates", lambda model: model.gates, wrap=False),
        Column("parameters", lambda model: f"{model.parameters / 1e6:.1f} M", right=True, wrap=False),
        Column("input", lambda model: ",".join(map(str, model.input_shape)), right=True, wrap=False),
        Column("T", lambda model: f"{model.temperature:g}", right=True, wrap=False),
        Column("weights", lambda model: f"{', '.join(model.weights)} ({model.origin})"),
    )
    screen.console().print(table_of("", columns, matching))
