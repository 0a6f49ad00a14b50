"""Lines full of words, names, numbers and random strings: the most letters that a page can hold."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Look, Sheet
from handlens_export.reader.layouts.style import Style, readable
from handlens_export.reader.scene import Scene

_PIECES = (words.string, words.string, words.string, words.person, words.item, words.price, words.code, words.date)


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """From the top to the bottom, each line as full as its width allows."""
    sheet = Sheet.blank(style, width, height)
    step = sheet.look().height * random.uniform(1.0, 1.3)
    top = random.uniform(2, step)
    lit = readable(random, style.background, without=style.ink.colour)
    while top + step < height:
        look = sheet.look(strong=random.random() < 0.1, ink=lit if random.random() < 0.15 else None)
        left = random.uniform(4, 12)
        sheet.put(_line(random, look, width - 4 - left), left, top, look)
        top += step if random.random() < 0.9 else 2 * step
    return sheet.scene("paragraph")


def _line(random: Random, look: Look, room: float) -> str:
    """Pieces side by side, at least one, until the next would not fit; now and then only half a line."""
    room *= random.choice((1, 1, 1, 0.6))
    line = random.choice(_PIECES)(random)
    while True:
        longer = f"{line} {random.choice(_PIECES)(random)}"
        if look.length(longer) > room:
            return line
        line = longer
