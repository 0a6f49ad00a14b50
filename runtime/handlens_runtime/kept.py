"""Files in the cache folder that may be lost but are never half there: written beside, renamed, checked before use.

    <cache folder>/<kind>/name                a kept file
                          name.json           its sha256, and what its writer noted
                          .name.lock          held while one process looks for it or writes it
                          .name.x7_q2.partial one being written

Knows files and hashes, nothing of what they hold. A file whose hash is not the one beside it counts as absent. A kept
file never changes, so its hash, once compared, is remembered (`verdicts`).
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from handlens_runtime import verdicts
from handlens_runtime.errors import OptionError
from handlens_runtime.verdicts import cache_folder

BOUND_VARIABLE = "HANDLENS_CACHE_BYTES"
DEFAULT_BOUND = 20_000_000_000
"""Bytes: five recipes of a 2.7B + 400M model, at a byte a weight."""
NOTE, PARTIAL, LOCK = ".json", ".partial", ".lock"
ABANDONED_SECONDS = 3600.0
"""A partial file that nobody wrote to for so long has lost its writer."""
_POLL_SECONDS = 0.05
_RANDOM = 8
"""Characters that `tempfile` chooses."""


@dataclass(frozen=True)
class KeptFile:
    """One kept file."""

    path: Path
    size: int
    used: float
    """When it was last used, in seconds since 1970."""
    about: dict[str, str]
    """What its writer noted."""


def folder_of(kind: str) -> Path:
    """Where files of a kind lie; RuntimeError for a user without a home."""
    return cache_folder() / kind


def size_bound() -> int:
    """Bytes that the files of a kind may take; an export's finished stages are one too.

    Raises OptionError where the variable is no number.
    """
    given = os.environ.get(BOUND_VARIABLE)
    if not given:
        return DEFAULT_BOUND
    if not given.isdecimal():
        raise OptionError(f"{BOUND_VARIABLE} is {given!r}, but it must be a whole number of bytes; 0 keeps nothing.")
    return int(given)


def find(path: Path) -> bool:
    """Whether the file is there and whole; notes that it is used now."""
    sha256 = _noted(path).get("sha256")
    try:
        whole = sha256 is not None and verdicts.matches(path, sha256)
    except OSError:
        return False
    if whole:
        with suppress(OSError):  # on the note: the file's own times are what its remembered verdict is bound to
            os.utime(_note(path))
    return whole


@contextmanager
def locked(path: Path, patience: float) -> Iterator[bool]:
    """Hold the file's lock, so that one process writes it and others wait for that; whether it was got in time.

    False too where the folder cannot be written or its file system has no locks. Makes the folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.parent / f".{path.name}{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _acquire(lock, time.monotonic() + patience)
    finally:
        os.close(lock)


def _acquire(lock: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError:
            return False


def partial(path: Path) -> Path:
    """A new empty file to write what `keep` will take; call it with the lock held. Raises OSError.

    What writers that were killed left of the same file is removed.
    """
    for left in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    os.close(handle)
    return Path(name)


def longest_partial(path: Path) -> Path:
    """A path as long as the one that `partial` gives."""
    return path.with_name(f".{path.name}.{'x' * _RANDOM}{PARTIAL}")


def keep(written: Path, path: Path, about: dict[str, str]) -> None:
    """Give a finished partial file its name, with its hash beside it. Raises OSError."""
    sha256 = verdicts.sha256_of(written)
    with written.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    verdicts.remember_own(path, sha256)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({**about, "sha256": sha256}, file)
    os.replace(name, _note(path))


def kept_files(folder: Path) -> list[KeptFile]:
    """All kept files of a folder, the least recently used first; none where there is no folder."""
    found = []
    for path in folder.glob("*"):
        if path.suffix == NOTE or path.name.startswith("."):
            continue
        with suppress(OSError):  # removed by another process meanwhile
            note = _note(path)
            used = (note if note.exists() else path).stat().st_mtime
            found.append(KeptFile(path, path.stat().st_size, used, _noted(path)))
    return sorted(found, key=lambda kept: (kept.used, kept.path.name))


def trim(folder: Path, most: int, spared: Path) -> None:
    """Remove files, the least recently used first, until the rest takes at most `most` bytes; never `spared`.

    One that a process has mapped stays readable to that process.
    """
    present = kept_files(folder)
    total = sum(kept.size for kept in present)
    for kept in present:
        if total > most and kept.path != spared:
            remove(kept)
            total -= kept.size
    _sweep(folder)


def remove(kept: KeptFile) -> None:
    """Remove a kept file, its note and its lock."""
    for path in (_note(kept.path), kept.path, kept.path.parent / f".{kept.path.name}{LOCK}"):
        with suppress(OSError):
            path.unlink()


def clear(folder: Path, older_than: float = 0.0) -> list[KeptFile]:
    """Remove files not used for `older_than` seconds, and what writers that were killed left; returns the former."""
    latest = time.time() - older_than
    chosen = [kept for kept in kept_files(folder) if kept.used <= latest]
    for kept in chosen:
        remove(kept)
    _sweep(folder)
    return chosen


def _sweep(folder: Path) -> None:
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _note(path: Path) -> Path:
    return path.with_name(path.name + NOTE)


def _noted(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(_note(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in stored.items() if isinstance(v, str)} if isinstance(stored, dict) else {}
