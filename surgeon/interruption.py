"""Ctrl-C in the middle of long work: what is done is kept, and the process still ends as interrupted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from surgeon.errors import SurgeonError

T = TypeVar("T")


class Interrupted(SurgeonError):
    """Ctrl-C after a part was done."""

    exit_code = 130


def kept(work: Iterable[T], before: int = 0) -> tuple[list[T], bool]:
    """What `work` yields, and whether Ctrl-C cut it short.

    Where nothing is done yet, nor was `before`, KeyboardInterrupt goes on its way.
    """
    done: list[T] = []
    try:
        for one in work:
            done.append(one)
    except KeyboardInterrupt:
        if not (done or before):
            raise
        return done, True
    return done, False
