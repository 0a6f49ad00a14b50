"""Memory that is told is this process's own."""

from __future__ import annotations

import subprocess
import sys

from handlens_runtime.stats import peak_memory_bytes

LARGE = 400_000_000


def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    before = bytearray(LARGE)
    before[::4096] = bytes(len(before[::4096])).replace(b"\0", b"x")
    assert peak_memory_bytes() > LARGE
    code = "from handlens_runtime.stats import peak_memory_bytes; print(peak_memory_bytes())"
    said = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE)
    assert 1_000_000 < int(said.stdout) < LARGE / 2
