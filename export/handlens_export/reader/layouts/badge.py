"""Visitor badges: cards with a name, a firm and a code. Held out of training."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Column, Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_VALUES: tuple[tuple[str, words.Value], ...] = (
    *(
        ("Badge", words.code),
        ("Desk", words.code),
        ("Host", words.person),
        ("Valid", words.date),
        ("PIN", words.number),
    ),
    *(("Floor", words.number), ("Tel", words.phone), ("Locker", words.code), ("From", words.place)),
)


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """One card with named fields, or on a larger page many, where the field of each name is its code."""
    sheet = Sheet.blank(style, width, height)
    across = max(1, int(width / (sheet.size * random.uniform(12, 16))))
    down = max(1, int(height / (sheet.size * random.uniform(5, 7)))) if across > 1 else 1
    wide, tall = width / across, height / down
    for row in range(down):
        for column in range(across):
            box = (column * wide + 2, row * tall + 2, (column + 1) * wide - 3, (row + 1) * tall - 3)
            sheet.page.draw.rectangle(box, outline=style.faint)
            inner = Column(sheet, random, box[0] + 5, box[2] - 5, box[1] + 3, box[3] - 2)
            if across > 1:
                _small(sheet, inner, random)
            else:
                _large(sheet, inner, random)
    return sheet.scene("badge")


def _small(sheet: Sheet, card: Column, random: Random) -> None:
    name, shown = sheet.look(strong=True, ink=sheet.style.accent), sheet.look()
    for _ in range(4):
        if card.stack(words.person(random), random.choice((words.code, words.phone))(random), name, shown):
            break
    if random.random() < 0.6:
        card.text(words.company(random), shown)


def _large(sheet: Sheet, card: Column, random: Random) -> None:
    title = sheet.look(random.choice((1.2, 1.6)), strong=True, ink=sheet.style.accent)
    if card.has_room(title, 3):
        card.text(words.person(random), title, "middle")
        card.text(words.company(random), sheet.look(), "middle")
    for name, value in random.sample(_VALUES, len(_VALUES)):
        card.pair(sheet.style.label(name), value(random), sheet.look(), follow=random.choice((None, ":")))
    card.pairs(words.label, words.value, sheet.look(), 60)
