"""The stage cache's folder: its entries, how much they may take, which go first. It knows nothing of what they hold.

    <cache folder>/stages/<key>-<sha256>.safetensors    a finished stage: what made it, and what it holds
                          .x7_q2.partial                one being written, locked while its writer lives

An entry never changes. It is written beside and renamed, and it is used only if its content has the hash in its name.
Whoever uses one holds a shared lock on it; only entries that nobody holds are removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from handlens_runtime.verdicts import cache_folder

SUFFIX, PARTIAL = ".safetensors", ".partial"
YOUNG_SECONDS = 60.0
"""A partial file without content may be about to be locked, unless it is older than this."""
LONGEST_HEADER = 10_000_000


@dataclass(frozen=True)
class Entry:
    """One finished stage."""

    path: Path
    size: int
    used: float
    """When it was last used, in seconds since 1970."""


def stage_folder() -> Path:
    """Where entries lie; RuntimeError for a user without a home."""
    return cache_folder() / "stages"


def entries(folder: Path) -> list[Entry]:
    """All entries of a folder, the least recently used first; none where there is no folder."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # removed by another export meanwhile
            stat = path.stat()
            found.append(Entry(path, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: (entry.used, entry.path.name))


def about(entry: Entry) -> dict[str, str]:
    """What its writer noted in it: the checkpoint, the stage. Empty where it cannot be read."""
    try:
        with entry.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            noted = json.loads(file.read(min(length, LONGEST_HEADER)))["__metadata__"]
        return {str(name): str(value) for name, value in noted.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def hold(path: Path) -> BinaryIO | None:
    """Open an entry for use: it is not removed before the file is closed. None where it is not there."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    with suppress(OSError):  # a file system without locks: nothing is removed there either
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if not _still_at(path, file):  # removed between opening and locking
        file.close()
        return None
    return file


def _still_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def touch(path: Path) -> None:
    """Note that an entry is used now."""
    with suppress(OSError):
        os.utime(path)


def remove(path: Path) -> bool:
    """Remove a file that nobody holds; whether it is gone."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:  # held, or not ours to remove
        return False
    return True


def trim(folder: Path, most: int) -> None:
    """Remove entries, the least recently used first, until the rest takes at most `most` bytes or is held."""
    present = entries(folder)
    total = sum(entry.size for entry in present)
    for entry in present:
        if total <= most:
            return
        if remove(entry.path):
            total -= entry.size


def clear(folder: Path, older_than: float = 0.0) -> tuple[list[Entry], list[Entry]]:
    """Remove entries not used for `older_than` seconds; returns those removed, and those held by a running export."""
    latest = time.time() - older_than
    chosen = [entry for entry in entries(folder) if entry.used <= latest]
    removed = [entry for entry in chosen if remove(entry.path)]
    sweep(folder)
    return removed, [entry for entry in chosen if entry not in removed]


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind."""
    for path in _abandoned(folder):
        remove(path)


def _abandoned(folder: Path) -> Iterator[Path]:
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if stat.st_size or time.time() - stat.st_mtime > YOUNG_SECONDS:
                yield path
