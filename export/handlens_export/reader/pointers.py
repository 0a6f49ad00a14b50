"""Where on the picture the letters of a question and its answer stand, known by construction: supervision of attention.

A decoder has to find two things before it can say a letter: the text that the question names, and where the letter
itself stands. The next token's loss tells it neither; these do (Liu et al., 2016, "Neural Machine Translation with
Supervised Attention").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from handlens_export.reader.camera import Affine
from handlens_export.reader.labels import Canvas
from handlens_export.reader.page import Line, Page
from handlens_export.reader.questions import PARTED, STARTING
from handlens_export.reader.rows import rows
from handlens_export.reader.scene import Turn

NOWHERE = -1
Places = tuple[int, ...]
"""For each character of a text, which of the picture's image tokens its middle lies in, or NOWHERE."""
_COPIED = ("field", "place", "fields", "transcribe", "page")


@dataclass(frozen=True)
class Pointers:
    """Of a page that was cut into tiles. A text that stands on the page twice points nowhere."""

    texts: dict[str, Places]
    """Runs, rows, and figures by their names."""
    lines: tuple[tuple[str, Places], ...]
    """Rows from the top down."""

    @classmethod
    def of(cls, page: Page, where: Affine, canvas: Canvas, downsample: int) -> Pointers:
        """`downsample`: patches along a side of an image token."""
        grid = _Tokens(where, canvas, downsample)
        runs = {id(run): grid.of(run) for run in page.lines}
        found: dict[str, set[Places]] = {}
        for run in page.lines:
            for text in {run.text, run.text.removesuffix(":") or run.text}:  # a label is called without its colon
                found.setdefault(text, set()).add(runs[id(run)][: len(text)])
        lines = []
        for row in rows(page):
            places = [place for run in row.runs for place in (*runs[id(run)], NOWHERE)][:-1]
            lines.append((row.text, tuple(places)))
            if len(row.runs) > 1:
                found.setdefault(row.text, set()).add(tuple(places))
        for shape in page.shapes:
            left, top, right, bottom = shape.box
            at = grid.at(np.array([((left + right) / 2, (top + bottom) / 2)]))[0]
            for name in (shape.kind, f"{shape.colour} {shape.kind}"):
                found.setdefault(name, set()).add((at,) * len(name))
        single = {text: places.copy().pop() for text, places in found.items() if len(places) == 1}
        return cls(single, tuple(lines))

    def question(self, turn: Turn) -> Places:
        """Of its characters: those that name a text or a figure of the page, or deny one by one wrong letter."""
        places = [NOWHERE] * len(turn.question)
        asked = turn.question
        before, after = STARTING.split("{}")
        if asked.startswith(before):
            begun = asked.removeprefix(before).removesuffix(after)
            for text, known in self.lines:
                if text.startswith(begun):
                    places[len(before) : len(before) + len(begun)] = known[: len(begun)]
            return tuple(places)
        starts = [match.start() for match in re.finditer(r"(?<![^\W_])\S", asked)]
        for wrong in (0, 1) if turn.kind == "yes-no" else (0,):
            for text in sorted(self.texts, key=len, reverse=True):
                for start in starts:
                    at = slice(start, start + len(text))
                    free = all(place == NOWHERE for place in places[at])
                    if free and _differing(text, asked[at]) == wrong and not asked[at.stop : at.stop + 1].isalnum():
                        places[at] = self.texts[text]
        return tuple(places)

    def answer(self, turn: Turn) -> Places:
        """Of its characters, where it is copied from the page."""
        nowhere = (NOWHERE,) * len(turn.answer)
        if turn.kind not in _COPIED:
            return nowhere
        if turn.kind == "page":
            return tuple(place for _, known in self.lines for place in (*known, NOWHERE))[:-1]
        if turn.kind == "fields":
            parts = [self.texts.get(name, (NOWHERE,) * len(name)) for name in turn.answer.split(PARTED)]
            return tuple(place for part in parts for place in (*part, *[NOWHERE] * len(PARTED)))[: len(turn.answer)]
        return self.texts.get(turn.answer, nowhere)


class _Tokens:
    def __init__(self, where: Affine, canvas: Canvas, downsample: int) -> None:
        self.where, self.canvas = where, canvas
        self.side = canvas.patch * downsample

    def of(self, run: Line) -> Places:
        return self.at(np.array([(x, run.y) for x in run.centres]))

    def at(self, points: np.ndarray) -> Places:
        """(n, 2) of the page -> the image token of each."""
        scale, offset = self.canvas.fit
        across, down = np.floor((self.where(points) * scale + offset) / self.side).astype(int).T
        per = self.canvas.tile // self.side
        inside = (across >= 0) & (across < self.canvas.columns * per) & (down >= 0) & (down < self.canvas.rows * per)
        tile = down // per * self.canvas.columns + across // per + self.canvas.thumbnail
        return tuple(np.where(inside, tile * per**2 + down % per * per + across % per, NOWHERE).tolist())


def _differing(text: str, other: str) -> int:
    """Characters; a text of one or two is only itself."""
    if len(text) != len(other):
        return len(text)
    wrong = sum(one != two for one, two in zip(text, other, strict=True))
    return wrong if len(text) > 2 or not wrong else len(text) + 1
