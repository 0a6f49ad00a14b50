"""Bytes a second that this machine reads from memory: what decoding is held against. Knows nothing of networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 512_000_000
"""More than any cache holds."""


class Bandwidth:
    """Reads one large array again and again, by as many threads as an engine has."""

    def __init__(self, threads: int, count: int) -> None:
        """`count`: bytes of the array, which is kept and written once so that its pages are real."""
        # The maximum of int64: one load and one comparison for 8 bytes, so that one core alone comes near the
        # memory's limit. numpy lets go of Python's lock meanwhile.
        self._parts = np.array_split(np.ones(count // 8, np.int64), threads)
        self._bytes = sum(part.nbytes for part in self._parts)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self, seconds: float) -> float:
        """Bytes a second in the quickest of the passes that fit into `seconds`."""
        return self._bytes / best(lambda: list(self._pool.map(np.max, self._parts)), seconds)


def best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest of repeated runs, after one to warm up: other work only ever slows a run."""
    run()
    end, quickest = time.perf_counter() + seconds, float("inf")
    while True:
        began = time.perf_counter()
        run()
        now = time.perf_counter()
        quickest = min(quickest, now - began)
        if now >= end:
            return quickest
