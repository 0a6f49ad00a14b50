"""Coloured figures, some with a caption."""

from __future__ import annotations

from random import Random
from typing import get_args

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Sheet
from handlens_export.reader.layouts.style import Style, visible
from handlens_export.reader.page import ShapeKind
from handlens_export.reader.scene import Scene

FIGURES: tuple[ShapeKind, ...] = tuple(kind for kind in get_args(ShapeKind) if kind != "bar")


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """Figures of one row or several, of a few kinds and colours so that they can be counted."""
    sheet = Sheet.blank(style, width, height)
    look = sheet.look()
    cell = max(random.uniform(40, 100), look.size * 4)
    across, down = max(1, int(width / cell)), max(1, int(height / (cell + look.height)))
    places = [(x, y) for y in range(down) for x in range(across)]
    shown = sorted(random.sample(places, random.randint(1, min(len(places), 12))), key=lambda at: (at[1], at[0]))
    kinds = random.sample(FIGURES, random.randint(1, 4))
    inks = [visible(random, style.background) for _ in range(random.randint(1, 4))]
    captions = random.choice((0.0, 0.4, 1.0, 1.0))
    wide, tall = width / across, height / down
    for x, y in shown:
        side = random.uniform(0.45, 0.85) * min(wide, tall - look.height - 6)
        left = x * wide + (wide - side) * random.uniform(0.2, 0.8)
        top = y * tall + 3 + (tall - look.height - 6 - side) * random.uniform(0, 1)
        sheet.page.shape(random.choice(kinds), (left, top, left + side, top + side), *random.choice(inks))
        if random.random() < captions:
            _caption(sheet, random, (x * wide + 3, (x + 1) * wide - 3), (y + 1) * tall - look.height - 2)
    return sheet.scene("shapes")


def _caption(sheet: Sheet, random: Random, span: tuple[float, float], y: float) -> None:
    look = sheet.look()
    for _ in range(4):
        text = random.choice((words.word, words.code, words.number, words.nonsense))(random)
        if look.length(text) <= span[1] - span[0]:
            sheet.put(text, (span[0] + span[1] - look.length(text)) / 2, y, look)
            return
