"""Memory that is told is this process's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from handlens_runtime.stats import peak_memory_bytes, restart_peak_memory

LARGE = 400_000_000


def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    before = bytearray(LARGE)
    before[::4096] = bytes(len(before[::4096])).replace(b"\0", b"x")
    assert peak_memory_bytes() > LARGE
    code = "from handlens_runtime.stats import peak_memory_bytes; print(peak_memory_bytes())"
    said = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE)
    assert 1_000_000 < int(said.stdout) < LARGE / 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can let a peak begin anew")
def test_a_peak_begins_anew() -> None:
    large = bytearray(LARGE)
    large[::4096] = bytes(len(large[::4096])).replace(b"\0", b"x")
    before = peak_memory_bytes()
    del large
    assert restart_peak_memory()
    assert peak_memory_bytes() < before - LARGE / 2
