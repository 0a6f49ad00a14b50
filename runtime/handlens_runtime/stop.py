"""How one thread asks another to stop between two steps."""

from __future__ import annotations

from threading import Event


class Stopped(Exception):  # noqa: N818 - a signal between the engine's layers, not an error a user sees
    """Raised by `StopSignal.check` and by a backend whose pass was ended, caught by the engine."""


class StopSignal:
    """Belongs to one run of the engine, so that a late `stop()` never reaches the next run."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """Ask the run to stop; safe from any thread."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the run was asked to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise Stopped if the run was asked to stop; called between any two steps."""
        if self.is_set():
            raise Stopped
