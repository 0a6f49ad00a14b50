"""Every file of a bundle, damaged byte by byte and cut short: refused at load, in a sentence that names the file."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bundles
from outcome import Cases, Outcome

from handlens_runtime.bundle import MANIFEST, SEAL, Bundle
from handlens_runtime.errors import BundleError

WHOLE = 12 * 1024
"""Files up to this size are damaged at every byte, larger ones at SAMPLE positions."""
SAMPLE = 200
MASKS = (0x01, 0x20, 0x80, 0xFF)
"""What a byte is flipped by: one bit at either end, a letter's case, all bits."""


def flips() -> Outcome:
    """One byte at a time."""
    return _damage(_flips, "any flipped byte is refused, naming the file")


def cuts() -> Outcome:
    """Files cut short, emptied, lengthened, and taken away."""
    return _damage(_cuts, "any truncation is refused, naming the file")


def _damage(kind: Callable[[Path, random.Random], Iterator[str]], bar: str) -> Outcome:
    accepted: list[str] = []
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        shutil.copytree(bundles.nano(), folder)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for name in names:
            counts[name] = 0
            for what in kind(folder / name, random.Random(name)):
                counts[name] += 1
                verdict = _refusal(folder, name)
                if verdict is not None:
                    accepted.append(f"{name}, {what}: {verdict}")
        Bundle.load(folder)  # everything was put back
    values: dict[str, Any] = {"files": len(counts), "damages": counts, "not refused as asked": accepted[:20]}
    return Outcome(values, bar, not accepted and all(counts.values()))


def _refusal(folder: Path, name: str) -> str | None:
    """What is wrong with how the load went; None where it was refused in a sentence that names the file."""
    try:
        Bundle.load(folder)
    except BundleError as error:
        # The seal covers the manifest: which of the two is damaged cannot be told, so the sentence names both.
        named = name in str(error) or (name in (MANIFEST, SEAL) and MANIFEST in str(error) and SEAL in str(error))
        return None if named and "\n" not in str(error) else f"refused as: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _flips(path: Path, chance: random.Random) -> Iterator[str]:
    size = path.stat().st_size
    positions = range(size) if size <= WHOLE else sorted({0, size - 1, *chance.sample(range(size), SAMPLE)})
    for position in positions:
        mask = chance.choice(MASKS)
        with path.open("r+b") as file:
            _flip(file, position, mask)
        yield f"byte {position} of {size} flipped by {mask:#x}"
        with path.open("r+b") as file:
            _flip(file, position, mask)


def _flip(file: Any, position: int, mask: int) -> None:
    file.seek(position)
    old = file.read(1)[0]
    file.seek(position)
    file.write(bytes([old ^ mask]))


def _cuts(path: Path, chance: random.Random) -> Iterator[str]:
    content = path.read_bytes()
    sizes = {0, 1, len(content) // 2, len(content) - 1, *(chance.randrange(len(content)) for _ in range(8))}
    for size in sorted(sizes):
        with _in_its_place(path, content):
            path.write_bytes(content[:size])
            yield f"cut to {size} of {len(content)} bytes"
    with _in_its_place(path, content):
        path.write_bytes(content + b"\n")
        yield "a byte longer"
    with _in_its_place(path, content):
        path.unlink()
        yield "taken away"


@contextmanager
def _in_its_place(path: Path, content: bytes) -> Iterator[None]:
    try:
        yield
    finally:
        path.write_bytes(content)


CASES: Cases = {"flipped bytes are refused by name": flips, "truncated files are refused by name": cuts}
