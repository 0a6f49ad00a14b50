"""Remembers that a large file was already hashed and found whole, so that hashing does not eat the load time.

Knows files and hashes, nothing about bundles. A verdict is bound to the file's identity (path, size, mtime, ctime,
inode) and to the hash it was compared with; only files whose times are older than 2 s get one, because a younger file
can change once more within its timestamp's resolution. The store is one small JSON file in the cache folder
(`HANDLENS_CACHE`, else `~/.cache/handlens`). A damaged or unwritable store costs a second hashing, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

LARGE = 64 * 1024 * 1024
"""Bytes from which a verdict is worth remembering; a smaller file is hashed in a blink."""
SETTLED_SECONDS = 2.0
_MOST_ENTRIES = 512
CACHE_VARIABLE = "HANDLENS_CACHE"
_STORE = "verified-files.json"


def sha256_of(path: Path) -> str:
    """Lower-case hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, sha256: str) -> bool:
    """Whether the file's content has this hash; hashes it unless a large file's verdict is remembered."""
    before = path.stat()
    if before.st_size < LARGE:
        return sha256_of(path) == sha256
    key = _identity(path, before)
    if _read().get(key) == sha256:
        return True
    started = time.time()
    if sha256_of(path) != sha256:
        return False
    settled = started - max(before.st_mtime, before.st_ctime) > SETTLED_SECONDS
    if settled and _identity(path, path.stat()) == key:
        _remember(key, sha256)
    return True


def remember_own(path: Path, sha256: str) -> None:
    """Remember the hash of a large file that this process has written to disk, hashed and given its name.

    Its times may be young: nobody else writes to it.
    """
    stat = path.stat()
    if stat.st_size >= LARGE:
        _remember(_identity(path, stat), sha256)


def cache_folder() -> Path:
    """Where HandLens keeps what it may lose: `HANDLENS_CACHE`, else `~/.cache/handlens`."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path("~/.cache/handlens").expanduser()


def _identity(path: Path, stat: os.stat_result) -> str:
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def _read() -> dict[str, str]:
    try:
        stored = json.loads((cache_folder() / _STORE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # absent, unreadable, damaged, or a user without a home
        return {}
    return {k: v for k, v in stored.items() if isinstance(v, str)} if isinstance(stored, dict) else {}


def _remember(key: str, sha256: str) -> None:
    verdicts = _read()
    verdicts.pop(key, None)
    verdicts[key] = sha256
    newest = dict(list(verdicts.items())[-_MOST_ENTRIES:])
    with contextlib.suppress(OSError, RuntimeError):  # an unwritable cache only costs the next load a hashing
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=_STORE)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(newest, file)
            os.replace(name, folder / _STORE)
        except OSError:
            os.unlink(name)
            raise
