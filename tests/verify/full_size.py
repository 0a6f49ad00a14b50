"""The 3B model through the export: what it takes of memory and time. For quiet cores; `resume` kills it."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import bundles
import peak
from outcome import Cases, Outcome

GIB = 1 << 30


def exported() -> Outcome:
    """Both backends from nothing, the cache empty."""
    checkpoint = bundles.full_checkpoint()
    with tempfile.TemporaryDirectory(prefix="handlens-verify-", dir=bundles.verify_folder()) as scratch:
        command = [sys.executable, "-m", "handlens", "export", str(checkpoint), "-o", str(Path(scratch) / "bundle")]
        paths = os.pathsep.join(str(bundles.ROOT / tree) for tree in ("sdk", "export", "runtime"))
        found = peak.run(command, {**os.environ, "PYTHONPATH": paths, "HANDLENS_CACHE": str(Path(scratch) / "cache")})
        size = sum(path.stat().st_size for path in (Path(scratch) / "bundle").rglob("*") if path.is_file())
    values = {
        "peak, GiB": round(found.resident / GIB, 2),
        "of it anonymous, GiB": round(found.anonymous / GIB, 2),
        "minutes": round(found.seconds / 60, 1),
        "processor minutes": round(found.cpu_seconds / 60, 1),
        "cores": len(os.sched_getaffinity(0)),
        "bundle, GB": round(size / 1e9, 2),
    }
    bar = "at most 8 GiB, file-backed pages included, and 12 minutes"
    return Outcome(values, bar, found.resident <= 8 * GIB and found.seconds <= 720)


CASES: Cases = {"bluelm-v-3b for both backends": exported}
