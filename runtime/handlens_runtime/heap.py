"""What numpy and the C library take from the system: no more than is written, and back once it is freed."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


def zeros(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """As `np.zeros`, but what is not written takes no memory: numpy asks for pages of 2 MB from 4 MB on, each of which
    is taken whole.
    """
    size = max(1, prod(shape) * np.dtype(dtype).itemsize)
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages are taken by reading too
    with suppress(AttributeError, OSError):  # no Linux, or one without such pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype, prod(shape)).reshape(shape)


def trim() -> None:
    """Give back what can be; does nothing where the C library has no such call (it is glibc's).

    Parsing a tokenizer of 100,000 tokens leaves 50 MB behind, on a phone's budget of 2 GB.
    """
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    give_back(0)
