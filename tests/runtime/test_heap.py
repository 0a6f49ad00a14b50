"""What is allocated and not written takes no memory."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from handlens_runtime import heap
from handlens_runtime.stats import peak_memory_bytes, restart_peak_memory

MB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can let a peak begin anew")
def test_zeros_take_memory_by_the_page_that_is_written():
    assert restart_peak_memory()
    before = peak_memory_bytes()
    array = heap.zeros((4, 50, MB), "int8")
    array.reshape(-1)[:: 2 * MB] = 1  # as a cache of which each head's first rows are written
    assert array.sum() == 100
    array[3, 40:42] = 1
    assert 2 * MB <= peak_memory_bytes() - before < 8 * MB


def test_a_kernel_without_large_pages_gives_its_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pages(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Pages)
    assert not heap.zeros((2, 3), "int8").any()


def test_zeros_are_numpys():
    for shape, dtype in (((2, 3, 4), "float32"), ((5,), "int8"), ((2, 0), "int8")):
        array = heap.zeros(shape, dtype)
        np.testing.assert_array_equal(array, np.zeros(shape, dtype))
        assert array.dtype == dtype and array.flags.writeable
