"""A safetensors file, written in one pass that also hashes it, and read as memory-mapped tensors.

The safetensors package does neither: its writer makes a copy of every tensor first, and hides which error the disk
gave; its tensors are views into one storage as long as the file, which XNNPACK's exporter takes for the tensor itself.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
from collections.abc import Mapping
from math import prod
from typing import BinaryIO
from weakref import WeakSet

import torch
from torch import Tensor

DTYPES = {"F32": torch.float32, "I8": torch.int8, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_mapped: WeakSet[mmap.mmap] = WeakSet()
_lock = threading.Lock()
ALIGNMENT = 64
"""Bytes that the first tensor is aligned to; wider types come first, so that all are aligned to their own size."""


def write(file: BinaryIO, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Write float32, int8 and uint8 tensors; returns the sha256 of all that was written, hexadecimal."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": dict(about)}
    offset = 0
    for name, tensor in ordered:
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    state = hashlib.sha256()
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little") + text]
    for part in parts + [_bytes(tensor) for _, tensor in ordered]:
        file.write(part)
        state.update(part)
    file.flush()
    return state.hexdigest()


def let_go() -> None:
    """Give back the pages of all mapped tensors: what is used again is read again, mostly from the system's cache."""
    with _lock:
        all_mapped = list(_mapped)
    for mapped in all_mapped:
        mapped.madvise(mmap.MADV_DONTNEED)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def read(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of a whole file, each with a storage of its own; nothing is read before it is used.

    They are not to be written to: that would change this process's memory, never the file, until `let_go`. The mapping
    goes with the last of them.
    """
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with _lock:
        _mapped.add(mapped)
    begin = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:begin])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype, at = entry["shape"], DTYPES[entry["dtype"]], begin + entry["data_offsets"][0]
        tensors[name] = torch.frombuffer(mapped, dtype=dtype, count=prod(shape), offset=at).reshape(shape)
    return tensors
