"""The 3B model through the export: what it takes of memory and time, and whether `plan` knew. For quiet cores.

`resume` kills it. The bundle stays in the cache folder, for `handlens bench`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bundles
import peak
from outcome import Cases, Outcome

GIB = 1 << 30
NAME = "bluelm-v-3b"
BUNDLE, HOST, PEAK = 0.02, 0.15, 0.10
"""How far `plan` may be off: bytes of the bundle, memory of the export, memory of a run."""


def exported() -> Outcome:
    """Both backends from nothing, the cache empty."""
    checkpoint = bundles.full_checkpoint()
    with tempfile.TemporaryDirectory(prefix="handlens-verify-", dir=bundles.verify_folder()) as scratch:
        made, cache = Path(scratch) / "bundle", Path(scratch) / "cache"
        found = peak.run([*_handlens("export"), str(checkpoint), "-o", str(made)], _environment(cache))
        layers = len(list((cache / "stages").glob("*.safetensors")))
        figures = {"resident": found.resident, "bytes": _bytes(made), "seconds": found.seconds, "layers": layers}
        shutil.rmtree(bundles.full_export(), ignore_errors=True)
        whole = Path(scratch) / "whole"
        whole.mkdir()
        made.rename(whole / "bundle")
        (whole / "figures.json").write_text(json.dumps(figures))
        whole.rename(bundles.full_export())
    values = {
        "peak, GiB": round(found.resident / GIB, 2),
        "of it anonymous, GiB": round(found.anonymous / GIB, 2),
        "minutes": round(found.seconds / 60, 1),
        "processor minutes": round(found.cpu_seconds / 60, 1),
        "cores": len(os.sched_getaffinity(0)),
        "bundle, GB": round(figures["bytes"] / 1e9, 2),
    }
    bar = "at most 8 GiB, file-backed pages included, and 12 minutes"
    return Outcome(values, bar, found.resident <= 8 * GIB and found.seconds <= 720)


def predicted() -> Outcome:
    """What `plan` says beforehand, beside the export above and a run of its bundle with a picture and a full cache."""
    if not bundles.full_export().exists():
        exported()
    figures = json.loads((bundles.full_export() / "figures.json").read_text())
    planned = _json([*_handlens("plan"), str(bundles.full_checkpoint()), "--json"])
    values: dict[str, object] = {}
    off = [
        (_off(values, "bundle", planned["bytes"], figures["bytes"]), BUNDLE),
        (_off(values, "host RAM", planned["host"]["peak_bytes"], figures["resident"]), HOST),
    ]
    for backend, memory in planned["memory"]["backends"].items():
        tests = ["--prompts", "16", "--depths", "2032", "--repeat", "1", "--json"]
        measured = _json([*_handlens("bench"), str(bundles.full_export() / "bundle"), "--backend", backend, *tests])
        peak_bytes = measured["peak_memory_pictures_bytes"]
        off.append((_off(values, f"peak, {backend}", memory["peak"], peak_bytes), PEAK))
    bar = f"bundle within {BUNDLE:.0%}, host RAM {HOST:.0%}, peak of a run {PEAK:.0%}"
    return Outcome(values, bar, all(abs(found) <= most for found, most in off))


def _off(values: dict[str, object], what: str, told: int, found: int) -> float:
    values[what] = {"planned, GB": round(told / 1e9, 3), "found, GB": round(found / 1e9, 3), "%": _percent(told, found)}
    return told / found - 1


def _percent(told: int, found: int) -> float:
    return round(100 * (told / found - 1), 1)


def _json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, env=_environment(None), stdout=subprocess.PIPE, check=True).stdout)


def _handlens(verb: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "handlens", verb]


def _environment(cache: Path | None) -> dict[str, str]:
    paths = os.pathsep.join(str(bundles.ROOT / tree) for tree in ("sdk", "export", "runtime"))
    return {**os.environ, "PYTHONPATH": paths} | ({} if cache is None else {"HANDLENS_CACHE": str(cache)})


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


CASES: Cases = {f"{NAME} for both backends": exported, f"what plan says of {NAME}": predicted}
