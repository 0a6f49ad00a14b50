"""The rows of text of a page: which runs stand on one baseline, and what is beside and below them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from handlens_export.reader.page import Line, Page


@dataclass(frozen=True)
class Row:
    """Runs on one baseline, from left to right."""

    runs: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The runs joined by one space."""
        return " ".join(run.text for run in self.runs)


def rows(page: Page) -> tuple[Row, ...]:
    """From the top down, or nothing where runs overlap too little to be one row and too much to be two."""
    groups: list[list[Line]] = []
    for run in sorted(page.lines, key=lambda each: each.y):
        if groups and any(_shared(run, other) > 0.5 for other in groups[-1]):
            groups[-1].append(run)
        else:
            groups.append([run])
    for above, below in pairwise(groups):
        if any(_shared(one, other) > 0.2 for one in above for other in below):
            return ()
    return tuple(Row(tuple(sorted(group, key=lambda each: each.box[0]))) for group in groups)


def below(all_rows: tuple[Row, ...], row: int, run: Line) -> Line | None:
    """The one run of the next row that stands under `run`; None where there is none, or are several, or it is far."""
    if row + 1 >= len(all_rows):
        return None
    under = [each for each in all_rows[row + 1].runs if each.box[0] < run.box[2] and each.box[2] > run.box[0]]
    near = [each for each in under if each.box[1] - run.box[3] < 3 * (run.box[3] - run.box[1])]
    return near[0] if len(under) == len(near) == 1 else None


def _shared(one: Line, other: Line) -> float:
    """How much of the lower one's height is beside the other, 0 to 1."""
    both = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return max(0.0, both) / max(1.0, min(one.box[3] - one.box[1], other.box[3] - other.box[1]))
