"""Peak memory of the process that runs this, and of no other."""

from __future__ import annotations

from pathlib import Path

from handlens_runtime.stats import peak_memory_bytes

STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """VmHWM in bytes: most that was ever resident, file-backed pages included.

    Not getrusage's peak, which Linux begins with that of the process that started this one.
    """
    if not STATUS.exists():  # macOS
        return peak_memory_bytes()
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
