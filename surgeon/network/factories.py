"""Networks made by a user's function: `package.module:factory`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from surgeon.errors import SurgeonError, named_line


def call_factory(source: str) -> tuple[Callable[[], nn.Module], nn.Module]:
    """Import and call `package.module:factory`: (factory, module). Raises SurgeonError for the user's exceptions."""
    path, _, attribute = source.partition(":")
    with _working_directory_importable():
        try:
            factory: Any = importlib.import_module(path)
        except ModuleNotFoundError as error:
            raise SurgeonError(
                f"{source}: {error}".rstrip("."), "Run from the folder that holds it, or install it"
            ) from error
        except Exception as error:
            raise SurgeonError(f"importing {path} failed ({named_line(error)})", "Mend the module") from error
        for part in attribute.split("."):
            if not hasattr(factory, part):
                raise SurgeonError(f"{path} has no {attribute!r}", "Write package.module:factory")
            factory = getattr(factory, part)
        if isinstance(factory, nn.Module) or not callable(factory):
            raise SurgeonError(
                f"{source} is not a factory", "Name a callable without arguments that returns the module"
            )
        try:
            module = factory()
        except SurgeonError:
            raise
        except Exception as error:
            raise SurgeonError(
                f"calling {source} failed ({named_line(error)})", "It is called without arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise SurgeonError(f"{source} returned a {type(module).__name__}", "Return a torch.nn.Module")
    return factory, module


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
