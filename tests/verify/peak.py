"""Memory of a process and all that it starts, while it runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 0.5
"""Between two looks."""


@dataclass(frozen=True)
class Peak:
    """Of a whole tree of processes, in bytes; a page that several share counts once."""

    resident: int
    """File-backed pages included."""
    anonymous: int
    at: float
    """Seconds from the beginning until it was the most resident."""
    seconds: float
    cpu_seconds: float


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Peak:
    """Run a command to its end. Raises CalledProcessError where it fails."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    resident = anonymous = 0
    at = 0.0
    cpu: dict[int, float] = {}
    while process.poll() is None:
        pids = _tree(process.pid)
        for pid in pids:
            cpu[pid] = max(cpu.get(pid, 0.0), _processor(pid))  # one that has just ended tells nothing any more
        most = [_at_most(pid) for pid in pids]
        # Proportions are walked page by page, which takes a third of a core from a tree of gigabytes: only for a peak.
        if sum(one for one, _ in most) > resident or sum(one for _, one in most) > anonymous:
            looked = [_look(pid) for pid in pids]
            found = sum(pss for pss, _ in looked)
            if found > resident:
                resident, at = found, time.monotonic() - began
            anonymous = max(anonymous, sum(anon for _, anon in looked))
        time.sleep(SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Peak(resident, anonymous, at, time.monotonic() - began, sum(cpu.values()))


def _tree(root: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat(int(folder.name))
            if fields:
                parents[int(folder.name)] = int(fields[1])
    found, grown = {root}, 0
    while grown != len(found):
        grown = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return sorted(found)


def _stat(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _processor(pid: int) -> float:
    """Seconds."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / 100 if fields else 0.0


def _at_most(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes, pages that others share counted whole."""
    sizes = _sizes(pid, "status")
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0)


def _look(pid: int) -> tuple[int, int]:
    """Proportional resident and anonymous bytes."""
    sizes = _sizes(pid, "smaps_rollup")
    return sizes.get("Pss", 0), sizes.get("Pss_Anon", 0)


def _sizes(pid: int, file: str) -> dict[str, int]:
    """None of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
