"""Numbers as people read them."""

from __future__ import annotations

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size(count: int) -> str:
    """Bytes in decimal units, as file managers and phone makers count: `98.4 MB`."""
    if count < 1000:
        return f"{count} B"
    for divisor, unit in ((10**3, "kB"), (10**6, "MB"), (10**9, "GB")):
        value = count / divisor
        # 999.96 kB is 1 MB: go on where rounding would show four digits.
        if value < 999.5 or unit == "GB":
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def bytes_of(text: str) -> int | None:
    """`2.2GB`, `900 MB`, `2GiB` or a plain number as bytes; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?|)b?", text.strip().lower())
    return round(float(found[1]) * UNITS[found[2]]) if found else None


def count(number: int) -> str:
    """Parameters: `134.5M`, `2.7B`."""
    for divisor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= divisor:
            return f"{number / divisor:.1f}{unit}"
    return str(number)
