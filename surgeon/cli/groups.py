"""Groups of commands whose errors name the nearest command."""

from __future__ import annotations

import difflib
from typing import Any

import click


class HelpfulGroup(click.Group):
    """A group that answers an unknown command with the nearest one, or with all."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """As click does, with that error."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            near = difflib.get_close_matches(args[0], names, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"The commands are {', '.join(names)}."
            raise click.UsageError(f"There is no command '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of definition."""
        return list(self.commands)
