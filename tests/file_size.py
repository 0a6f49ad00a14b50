"""Names every file over 1 MB among the paths given, or among git's files; for pre-commit and the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LIMIT = 1_000_000
"""Bytes. Others' weights and texts come through `handlens_export.materials`; they are never committed."""
OURS = {"assets/reader/model.safetensors": 20_000_000}
"""Bytes that the reader's own weights may have: made here, and nowhere else to be had."""


def tracked(root: Path) -> list[Path]:
    """The files that git tracks, those just deleted left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def oversized(paths: Iterable[Path]) -> list[str]:
    """A line for each file over the limit."""
    sizes = [(path, path.stat().st_size, _limit(path)) for path in paths]
    return [f"{path} has {size:,} bytes, over {limit:,}" for path, size, limit in sizes if size > limit]


def _limit(path: Path) -> int:
    return next((most for name, most in OURS.items() if path.as_posix().endswith(name)), LIMIT)


if __name__ == "__main__":
    lines = oversized(map(Path, sys.argv[1:]) if sys.argv[1:] else tracked(Path.cwd()))
    sys.exit("\n".join(lines) or 0)
