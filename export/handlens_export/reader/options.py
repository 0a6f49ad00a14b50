"""Types of the reader's command-line options."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def at_least(least: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """An argparse type: a number of a kind that is not below `least`."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not value >= least:
            raise ArgumentTypeError(f"{text} is below {least}; give at least {least}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number
    return parse
