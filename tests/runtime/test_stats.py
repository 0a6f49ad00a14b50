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


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, and glibc to show a difference")
def test_freed_memory_goes_back_to_the_system() -> None:
    code = (
        "from handlens_runtime.heap import trim; from handlens_runtime.stats import peak_memory_bytes as peak, "
        "restart_peak_memory as restart; kept = [bytes(1000) for _ in range(200_000)]; last = kept[-1]; del kept[:-1]; "
        "restart(); before = peak(); trim(); restart(); print(before - peak())"
    )
    said = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE)
    assert int(said.stdout) > 50_000_000
