"""Modules around a network, such as preprocessing, and names as the network's author sees them.

A wrapper holds the network under a reserved name, so that a user's own module called `network` is not taken for one.
"""

from __future__ import annotations

from torch import nn

INNER = "surgeon_network"
"""The attribute under which every wrapper holds the network that it wraps."""


class Wrapper(nn.Module):
    """A module around `network`, which is its attribute INNER; wrappers may wrap one another."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.add_module(INNER, network)

    @property
    def wrapped(self) -> nn.Module:
        """The network inside."""
        network: nn.Module = getattr(self, INNER)
        return network


def source_name(name: str) -> str:
    """The dotted name of a module, parameter or buffer, as seen from the innermost network: without the wrappers."""
    while name == INNER or name.startswith(f"{INNER}."):
        name = name[len(INNER) + 1 :]
    return name


def source_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The modules inside the network that `module` is or wraps, by each of their names there, without itself."""
    named = module.named_modules(remove_duplicate=False)
    return {short: part for name, part in named if (short := source_name(name))}
