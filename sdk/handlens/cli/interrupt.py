"""Ctrl-C stops the answer, not the program."""

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
