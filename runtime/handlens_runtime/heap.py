"""Memory that was freed but that the C library keeps, given back to the system."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Give back what can be; does nothing where the C library has no such call (it is glibc's).

    Parsing a tokenizer of 100,000 tokens leaves 50 MB behind, on a phone's budget of 2 GB.
    """
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    give_back(0)
