"""Where the packed weights of a program are kept, and when they may be used.

XNNPACK lays weights out anew for the processor each time a program is loaded: 10 to 14 s for 1.5 GB. It can keep the
result in a file and map it the next time. That file has no checksum: here it has one, and a name made of all that its
content depends on. Whatever is wrong with it, the weights are packed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from handlens_runtime import kept
from handlens_runtime.pte.build import executorch_folder
from handlens_runtime.pte.sharing import names_shared, packed_names
from handlens_runtime.verdicts import CACHE_VARIABLE

KIND = "packed"
_XNNPACK = Path("lib/libexecutorch_backend_xnnpack.so")
_PATIENCE_SECONDS = 60.0
"""How long a process waits for another that packs the same program: about as long as packing a large one takes."""
_SPACE = 2.5
"""Free bytes for each byte of the program: a file that runs out of disk while it is mapped ends the process."""
_SHARED = "two of the program's matrices have the same bytes, which XNNPACK's file cannot tell apart"
_RULE = "1"
"""Of what is kept, by which earlier files are told apart; another where that changes."""
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


@dataclass
class Place:
    """Where a load may find or leave packed weights."""

    path: Path | None
    """What XNNPACK is told; None: nothing, it packs in memory."""
    sound: bool = True
    """False, once the load is done: what was loaded must not be used, but loaded again without a path."""


@contextmanager
def place(program: Path, sha256: str | None, longest: int, warnings: list[str]) -> Iterator[Place]:
    """Load the program's methods inside: with the packed weights that are kept, or they are kept afterwards.

    longest: bytes of the longest path that XNNPACK takes. `warnings` gets a sentence where nothing can be kept.
    """
    bound = kept.size_bound()
    if sha256 is None or bound == 0:
        yield Place(None)
        return
    path = kept.folder_of(KIND) / f"{_key(sha256)}.xnnpack"
    if len(os.fsencode(kept.longest_partial(path))) > longest:
        refused = f"{path} is longer than XNNPACK takes; let {CACHE_VARIABLE} name a folder with a shorter path"
        warnings.append(_slower(refused))
        yield Place(None)
        return
    with kept.locked(path, _PATIENCE_SECONDS) as ours:
        if not ours:
            warnings.append(_slower(f"{path.parent} cannot be written or stays locked"))
            yield Place(None)
        elif kept.find(path):
            yield from _found(path, warnings)
        else:
            yield from _packed(program, path, bound, warnings)


def _found(path: Path, warnings: list[str]) -> Iterator[Place]:
    if path.stat().st_size == 0:
        warnings.append(_slower(_SHARED))
        yield Place(None)
        return
    yield Place(path)
    _let_others_read(path)


def _packed(program: Path, path: Path, bound: int, warnings: list[str]) -> Iterator[Place]:
    """Pack into a file beside, and give it its name once the methods are loaded."""
    refused = _refused(program, path.parent, bound)
    if refused is not None:
        warnings.append(_slower(refused))
        yield Place(None)
        return
    written = kept.partial(path)
    about = {"program": str(program), "executorch": metadata.version("executorch")}
    place = Place(written)
    try:
        yield place
        try:
            _let_others_read(written)
            names = packed_names(written)
            place.sound = not names_shared(program, names)
            if not place.sound:
                warnings.append(_slower(_SHARED))
                written.unlink()
                written = kept.partial(path)  # an empty one says so at the next load
            if names:
                kept.keep(written, path, about)
                kept.trim(path.parent, bound, path)
        except OSError as error:  # what is loaded is sound: it only has to be packed again next time
            warnings.append(_slower(f"{path.parent} cannot be written ({error.strerror})"))
    finally:
        with suppress(OSError):
            written.unlink(missing_ok=True)


def _refused(program: Path, folder: Path, bound: int) -> str | None:
    """Why nothing should be written, if so."""
    needed = int(program.stat().st_size * _SPACE)
    if needed > bound:
        return f"{kept.BOUND_VARIABLE} is {bound}, but the packed weights may take {needed} bytes"
    free = shutil.disk_usage(folder).free
    if needed > free:
        return f"{folder} has {free} bytes left, but the packed weights may take {needed}"
    return None


def _slower(why: str) -> str:
    return f"Weights are packed again at every load, which is slower: {why}."


def _let_others_read(path: Path) -> None:
    """Give up the lock that XNNPACK holds on its file for as long as the program lives.

    It writes nothing to the file any more, but another process that found it locked would pack again, in memory.
    """
    own = path.stat()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            if os.path.samestat(os.fstat(int(name)), own):
                fcntl.flock(int(name), fcntl.LOCK_UN)


def _key(sha256: str) -> str:
    depends = [_RULE, sha256, metadata.version("executorch"), _hash_of_library(), platform.machine(), *_processor()]
    return hashlib.sha256("\0".join(depends).encode()).hexdigest()[:32]


def _hash_of_library() -> str:
    """Of the library that packs: the same version may have been built anew."""
    return hashlib.sha256((executorch_folder() / _XNNPACK).read_bytes()).hexdigest()


def _processor() -> list[str]:
    """What tells processors apart, for which weights are laid out differently. Every core's, for they may differ."""
    found = set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in _CPU_FIELDS:
            found.add(f"{name.strip()}={value.strip()}")
    return sorted(found)
