"""Exact match per kind and group as a picture: a bar each, with the 95 % interval as a line over its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageColor, ImageDraw, ImageFont

from handlens.cli.scores import name_of

if TYPE_CHECKING:
    from handlens_runtime.evaluation import Evaluation, Score

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""One a group; told apart by colour-blind eyes too (Okabe and Ito)."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, FAINT = "#222222", "#CCCCCC"
WIDTH, MARGIN, LINE, THICK, GAP = 1400, 40, 30, 22, 18
LABELS, VALUES = 380, 240
"""Width of what stands left of the bars, and right of them."""


def draw_bars(found: Sequence[Evaluation]) -> Image.Image:
    """One picture of one run, or of two: the second run's bars are paler."""
    font, bold = ImageFont.load_default(22), ImageFont.load_default(26)
    head = [f"Exact match: {found[0].path.name}"]
    shades = ("", "full colour: ", "pale: ")
    for index, one in enumerate(found):
        head.append(f"{shades[index + 1 if len(found) > 1 else 0]}{name_of(one)}")
    blocks = _blocks(found)
    top = MARGIN + 44 + LINE * (len(head) - 1) + GAP
    height = top + sum(LINE * len(rows) + GAP for rows in blocks) + LINE + MARGIN
    sheet = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), head[0], INK, bold)
    for index, line in enumerate(head[1:]):
        pen.text((MARGIN, MARGIN + 44 + LINE * index), _fitted(pen, line, font, WIDTH - 2 * MARGIN), INK, font)
    bottom = height - MARGIN - LINE
    for percent in (0, 25, 50, 75, 100):
        x = _x(percent / 100)
        pen.line((x, top - 6, x, bottom), FAINT, 2)
        pen.text((x, bottom + 8), f"{percent}%", INK, font, anchor="ma")
    groups = list(dict.fromkeys(score.group for score in found[0].scores if score.group is not None))
    for rows in blocks:
        for label, run, score in rows:
            _bar(pen, top, label, score, _colour(score, groups, run), font)
            top += LINE
        top += GAP
    return sheet


Row = tuple[str, int, "Score"]
"""What stands before a bar, whose run it is, and its score."""


def _blocks(found: Sequence[Evaluation]) -> list[list[Row]]:
    """The bars, those of one kind together; all kinds last."""
    scores = [{(score.kind, score.group): score for score in one.scores} for one in found]
    blocks: dict[str | None, list[Row]] = {}
    for kind, group in scores[0]:
        label = f"{kind or 'all'}, {group}" if group is not None else kind or "all"
        for run, theirs in enumerate(scores):
            if (kind, group) in theirs:
                blocks.setdefault(kind, []).append((label if run == 0 else "", run, theirs[kind, group]))
    return list(blocks.values())


def _bar(pen: ImageDraw.ImageDraw, top: int, label: str, score: Score, colour: str, font: Font) -> None:
    middle = top + THICK // 2
    pen.text((LABELS - 16, middle), _fitted(pen, label, font, LABELS - MARGIN), INK, font, anchor="rm")
    pen.rectangle((_x(0), top, _x(score.exact_match), top + THICK), fill=colour)
    low, high = map(_x, score.interval)
    pen.line((low, middle, high, middle), INK, 2)
    for x in (low, high):
        pen.line((x, middle - 6, x, middle + 6), INK, 2)
    pen.text((WIDTH - VALUES + 16, middle), f"{score.exact_match:.1%} of {score.count}", INK, font, anchor="lm")


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: Font, room: int) -> str:
    """The text, cut where it is longer than its place."""
    while pen.textlength(text, font) > room:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _x(share: float) -> int:
    return round(LABELS + share * (WIDTH - LABELS - VALUES))


def _colour(score: Score, groups: Sequence[str], run: int) -> str:
    colour = "#777777" if score.group is None else COLOURS[groups.index(score.group) % len(COLOURS)]
    if run == 0:
        return colour
    return "#{:02X}{:02X}{:02X}".format(*((channel + 2 * 255) // 3 for channel in ImageColor.getrgb(colour)))
