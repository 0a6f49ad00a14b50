"""Progress of a long verb on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]
"""Called with a stage's name and the share of the whole done, 0 to 1."""

STEP = 0.1
"""A plain line for each new stage and each tenth of the whole."""


@contextmanager
def shown() -> Iterator[Progress]:
    """A `Progress` to hand to the exporter; what it draws is gone when the block ends."""
    if sys.stderr.isatty():
        yield from _bar()
    else:
        yield _lines()


def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=1.0)
        yield lambda stage, share: bar.update(task, description=stage, completed=share)


def _lines() -> Progress:
    began = time.monotonic()
    last: tuple[str, float] = ("", -1.0)

    def report(stage: str, share: float) -> None:
        nonlocal last
        if stage == last[0] and share - last[1] < STEP:
            return
        last = (stage, share)
        print(f"{share:4.0%} {stage}{_left(time.monotonic() - began, share)}", file=sys.stderr, flush=True)

    return report


def _left(elapsed: float, share: float) -> str:
    """The time left, once enough is done to tell."""
    if share < 0.05 or share >= 1.0:
        return ""
    return f" (about {duration(elapsed / share * (1 - share))} left)"


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
