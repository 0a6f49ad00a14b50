from __future__ import annotations

import pytest

from handlens.cli.progress import duration
from handlens.cli.units import count, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_362_432, "98.4 MB"),
        (99_960, "100 kB"),
        (999_960, "1.0 MB"),
        (1_570_000_000, "1.6 GB"),
        (12_345_000_000_000, "12345 GB"),
    ],
)
def test_size(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (1500, "1.5k"), (134_515_008, "134.5M"), (2_700_000_000, "2.7B")]
)
def test_count(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.84, "0.8 s"), (42.4, "42 s"), (200, "3 min 20 s")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
