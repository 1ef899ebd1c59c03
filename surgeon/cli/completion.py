"""`surgeon completion`: the lines that let a shell complete surgeon's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from surgeon.errors import SurgeonError

EXAMPLES = """\b
Examples:
  bash:  eval "$(surgeon completion bash)"              in ~/.bashrc
  zsh:   eval "$(surgeon completion zsh)"               in ~/.zshrc
  fish:  surgeon completion fish > ~/.config/fish/completions/surgeon.fish"""


@click.command("completion", epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the lines that make SHELL complete surgeon's commands and options."""
    from surgeon.cli import group

    completion = get_completion_class(shell)
    if completion is None:
        raise SurgeonError(f"this version of click completes nothing in {shell}", "Upgrade click")
    click.echo(completion(group, {}, "surgeon", "_SURGEON_COMPLETE").source())
