"""Ctrl-C while loading ends the program; while answering it stops the answer, not the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """What can be told to end early."""

    def stop(self) -> None:
        """End between two steps."""


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, Ctrl-C ends it with KeyboardInterrupt, whatever the block makes of that.

    Libraries written in C that are interrupted while they are imported raise an ImportError of their own instead.
    """
    seen: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except Exception as error:
        if seen:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


@contextmanager
def stops(engine: Stoppable) -> Iterator[list[int]]:
    """While the block runs, Ctrl-C asks `engine` to stop; a second one interrupts at once.

    Yields a list that is empty until then.
    """
    seen: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        engine.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
