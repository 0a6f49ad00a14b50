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
from handlens_export.reader.questions import PARTED, STARTING, naming
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
        runs = _tokens(page, where, canvas, downsample)
        found: dict[str, set[Places]] = {}
        for run, places in runs.items():
            for text in {run.text, run.text.removesuffix(":") or run.text}:  # a label is called without its colon
                found.setdefault(text, set()).add(places[: len(text)])
        lines = []
        for row in rows(page):
            joined = [place for run in row.runs for place in (*runs[run], NOWHERE)][:-1]
            lines.append((row.text, tuple(joined)))
            if len(row.runs) > 1:
                found.setdefault(row.text, set()).add(tuple(joined))
        for shape in page.shapes:
            left, top, right, bottom = shape.box
            at = _at(np.array([((left + right) / 2, (top + bottom) / 2)]), where, canvas, downsample)[0]
            for name in (shape.kind, f"{shape.colour} {shape.kind}"):
                found.setdefault(name, set()).add((at,) * len(name))
        single = {text: next(iter(places)) for text, places in found.items() if len(places) == 1}
        return cls(single, tuple(lines))

    def question(self, turn: Turn) -> Places:
        """Of its characters: those that name a text or a figure of the page, or deny one by a single wrong letter."""
        places = [NOWHERE] * len(turn.question)
        part = naming(turn.question)
        named = turn.question[part]
        if turn.question.startswith(STARTING.split("{}")[0]):
            known = next((known for text, known in self.lines if text.startswith(named)), ())
            places[part] = known[: len(named)] or places[part]
            return tuple(places)
        spans = _words(named)
        for near in (False, True) if turn.kind == "yes-no" else (False,):
            for start, end in spans:
                at = slice(part.start + start, part.start + end)
                known = self._near(named[start:end]) if near else self.texts.get(named[start:end], ())
                if known and all(place == NOWHERE for place in places[at]):
                    places[at] = known
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

    def _near(self, text: str) -> Places:
        """Of the one text that differs from it in one character; none where several do, or it is shorter than three."""
        like = [
            known
            for other, known in self.texts.items()
            if len(other) == len(text) > 2 and sum(map(str.__ne__, other, text)) == 1
        ]
        return like[0] if len(like) == 1 else ()


def _words(text: str) -> list[tuple[int, int]]:
    """Where one or more whole words of it begin and end, the longest first."""
    starts = [match.start() for match in re.finditer(r"(?<![^\W_])\S", text)]
    ends = [match.end() for match in re.finditer(r"\S(?![^\W_])", text)]
    return sorted(((start, end) for start in starts for end in ends if start < end), key=lambda at: at[0] - at[1])


def _tokens(page: Page, where: Affine, canvas: Canvas, downsample: int) -> dict[Line, Places]:
    """Of each run's characters."""
    middles = [(x, run.y) for run in page.lines for x in run.centres]
    whole = _at(np.array(middles).reshape(-1, 2), where, canvas, downsample)
    found, begin = {}, 0
    for run in page.lines:
        found[run] = whole[begin : begin + len(run.text)]
        begin += len(run.text)
    return found


def _at(points: np.ndarray, where: Affine, canvas: Canvas, downsample: int) -> Places:
    """(n, 2) of the page -> the image token of each."""
    scale, offset = canvas.fit
    side = canvas.patch * downsample
    across, down = np.floor((where(points) * scale + offset) / side).astype(int).T
    per = canvas.tile // side
    inside = (across >= 0) & (across < canvas.columns * per) & (down >= 0) & (down < canvas.rows * per)
    tile = down // per * canvas.columns + across // per + canvas.thumbnail
    return tuple(np.where(inside, tile * per**2 + down % per * per + across % per, NOWHERE).tolist())
