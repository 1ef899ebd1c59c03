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
    3,FRAMES,HEIGHT,WIDTH are for films, in [-1, 1] as pictures are. Name your own networks `package.module:factory`.

    \b
    surgeon models
    surgeon models resnet
    surgeon models 'vgg*_bn' --json
    """
    import dataclasses

    from surgeon.cli import screen
    from surgeon.cli.reports.tables import table
    from surgeon.network.catalogue import models

    listed = models(pattern)
    if as_json:
        screen.print_json({"models": [dataclasses.asdict(model) for model in listed]})
        return
    numbers = ("parameters", "input", "T")
    rows = [
        [
            *(model.name, model.gates, f"{model.parameters / 1e6:.1f} M", ",".join(map(str, model.input_shape))),
            *(f"{model.temperature:g}", f"{', '.join(model.weights)} ({model.origin})"),
        ]
        for model in listed
    ]
    screen.console().print(table("", ("name", "gates", *numbers, "weights"), rows, right=numbers))
