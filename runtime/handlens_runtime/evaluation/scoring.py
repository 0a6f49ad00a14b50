"""The arithmetic of answers: how close two strings are, and how far a share can be trusted. Pure functions."""

from __future__ import annotations

from math import sqrt

Z = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


def exact_match(found: str, expected: str) -> bool:
    """Equal but for whitespace at both ends."""
    return found.strip() == expected.strip()


def character_accuracy(found: str, expected: str) -> float:
    """1 - edit distance / length of the longer one, whitespace at both ends left out; 1 where both are empty."""
    found, expected = found.strip(), expected.strip()
    longer = max(len(found), len(expected))
    return 1 - edit_distance(found, expected) / longer if longer else 1.0


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions of a character that turn one into the other (Levenshtein)."""
    row = list(range(len(b) + 1))  # from the first i characters of a to the first j of b
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): sound also near 0 and 1, where p +- z*sqrt(pq/n) is not.

    Questions count as independent; several about one picture are a little less than that.
    """
    share, spread = hits / count, Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # The last bit of a sum must not leave the share itself outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def paired_interval(only_first: int, only_second: int, count: int) -> tuple[float, float]:
    """95 % interval of the first share minus the second, both of the same `count` questions.

    From the discordant counts, one added to each (Bonett and Price 2012, the adjusted Wald interval): where two runs
    agree everywhere, the interval still has a width.
    """
    first, second = ((discordant + 1) / (count + 2) for discordant in (only_first, only_second))
    difference = first - second
    half = Z * sqrt((first + second - difference**2) / (count + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)
