"""Pages of mapped files, given back to the system: resident memory until then, and again once they are read."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Collection
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def give_back(inodes: Collection[int]) -> None:
    """Drop the resident pages of this process's mappings of these files; does nothing without /proc (macOS).

    Nothing is lost: what is read again comes from the file, which the system still holds while it has the memory.
    """
    if not _MAPS.exists():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in _MAPS.read_text(errors="replace").splitlines():
        addresses, permissions, _, _, inode = line.split(maxsplit=5)[:5]
        # A private mapping that can be written may hold what the file does not.
        if int(inode) in inodes and not ("w" in permissions and "p" in permissions):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(begin, end - begin, mmap.MADV_DONTNEED)
