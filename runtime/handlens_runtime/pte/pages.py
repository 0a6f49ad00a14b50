"""Pages of mapped files, given back to the system: resident memory until then, and again once they are read."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def identity(path: Path | str) -> tuple[int, int] | None:
    """What a file is known by, whatever its name becomes; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def give_back(files: Collection[tuple[int, int]]) -> None:
    """Drop the resident pages of this process's mappings of these files; does nothing without /proc (macOS).

    Nothing is lost: what is read again comes from the file, which the system still holds while it has the memory.
    """
    if not _MAPS.exists():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    known = cache(identity)  # a library has several mappings, and to ask for its identity takes longest
    for line in _MAPS.read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        # A private mapping that can be written may hold what the file does not.
        if len(fields) == 6 and not ("w" in fields[1] and "p" in fields[1]) and known(fields[5]) in files:
            begin, end = (int(address, 16) for address in fields[0].split("-"))
            libc.madvise(begin, end - begin, mmap.MADV_DONTNEED)
