"""What one check found, as it is printed and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One line of "must show": what was measured, what was asked for."""

    values: dict[str, Any]
    bar: str
    passed: bool


Cases = dict[str, Callable[[], Outcome]]
"""A topic's lines: what each shows, and how."""
