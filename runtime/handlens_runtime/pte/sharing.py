"""Whether XNNPACK's packed weights can be trusted to tell a program's weights apart.

It finds packed weights by the name of the unpacked ones, which is the hash of their bytes. The scales of a quantized
matrix are packed with it but are no part of that name: of two matrices with equal bytes and other scales, such as W and
2 W at four bits, the second would get the first one's scales, in silence. Then none may be kept.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from pathlib import Path

_NAME = re.compile(rb"[0-9a-f]{64}")
"""A weight's name: the sha256 of its bytes, as ExecuTorch's exporter gives it."""
_NAME_LENGTH = 64
_MAGIC = b"XH00"
_HEADER = struct.Struct("<HII")  # after the magic: the header's length, the graph's offset and length
_BEFORE_MAGIC = 4
"""Bytes of a delegate's payload before its magic; the graph's offset counts from the payload's beginning."""
_FOOTER = struct.Struct("<QIII")  # where the index starts, entries, magic, version
_FOOTER_MAGIC = 0x58505743
_ENTRY_REST = 20
"""Bytes of an index entry after its name: offset, size, seed."""


def packed_names(packed: Path) -> list[bytes]:
    """Names of the weights in a file that XNNPACK wrote; none where it does not end as one."""
    size = packed.stat().st_size
    if size <= _FOOTER.size:
        return []
    with packed.open("rb") as file:
        file.seek(size - _FOOTER.size)
        start, entries, magic, _ = _FOOTER.unpack(file.read(_FOOTER.size))
        if magic != _FOOTER_MAGIC or start >= size:
            return []
        file.seek(start)
        index = file.read()
    names, at = [], 0
    for _ in range(entries):
        length = int.from_bytes(index[at : at + 4], "little")
        names.append(index[at + 4 : at + 4 + length])
        at += 4 + length + _ENTRY_REST
    return names


def names_shared(program: Path, names: list[bytes]) -> bool:
    """Whether the program's delegates use any of these weights more than once."""
    used = _uses(program)
    # A name of two hashes is that of a matrix and its bias.
    return any(used[name[:_NAME_LENGTH]] != 1 for name in names)


def _uses(program: Path) -> Counter[bytes]:
    """How often the graphs of all XNNPACK delegates in the file name each weight."""
    found: Counter[bytes] = Counter()
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_MAGIC)
        while at >= 0:
            begin = at + len(_MAGIC)
            if begin + _HEADER.size <= len(content):
                _, offset, length = _HEADER.unpack(content[begin : begin + _HEADER.size])
                graph = at - _BEFORE_MAGIC + offset
                # Where a weight's bytes happen to be the magic, what follows is no graph, and names nothing.
                found.update(_NAME.findall(content[graph : graph + length]))
            at = content.find(_MAGIC, begin)
    return found
