"""The errors that surgeon raises on purpose; the command line prints each as one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class SurgeonError(Exception):
    """An error that the user can act on.

    `message` names the fault and `remedy` the next thing to do; the command line ends with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class VerificationError(SurgeonError):
    """An artifact deviates from autograd by more than its tolerance."""

    exit_code = 3


class ConversionError(SurgeonError):
    """A network or one of its operators cannot be rewritten; the message names the node and its source module."""

    exit_code = 4


class UnknownOperators(ConversionError):
    """A file holds operators that cannot be imported: `nodes` and `reasons` by operator."""

    def __init__(self, message: str, remedy: str, nodes: dict[str, list[str]], reasons: dict[str, str]) -> None:
        super().__init__(message, remedy)
        self.nodes, self.reasons = nodes, reasons


class ProviderError(SurgeonError):
    """The requested execution provider is not available; surgeon never falls back to another."""

    exit_code = 5


class OptionError(SurgeonError):
    """The execution provider does not know an option, or cannot run this artifact with it."""


class Interrupted(SurgeonError):
    """Ctrl-C, after part of the work was done."""

    exit_code = 130


def collect_until_interrupt(work: Iterable[T], before: int = 0) -> tuple[list[T], bool]:
    """The items of `work` until it ends or is interrupted by Ctrl-C, and whether it was interrupted.

    KeyboardInterrupt is raised again if there is no item yet, and `before`, the number of earlier ones, is 0.
    """
    done: list[T] = []
    try:
        for item in work:
            done.append(item)
    except KeyboardInterrupt:
        if not (done or before):
            raise
        return done, True
    return done, False


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not blank, or the name of its class; without a full stop."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def named_line(error: BaseException) -> str:
    """The class name of an exception and the first line of its message, as in `ValueError: no such size`."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
