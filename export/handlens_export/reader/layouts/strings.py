"""Random strings at random places: nothing to read them by but their letters."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Look, Sheet
from handlens_export.reader.layouts.style import Style, readable
from handlens_export.reader.scene import Scene


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """From one string to a full page."""
    return draw_some(random, style, width, height, most=random.choice((2, 4, 10, 400)))


def draw_some(random: Random, style: Style, width: int, height: int, most: int) -> Scene:
    """One to `most` strings, as many as fit: the first steps of a curriculum have few."""
    sheet = Sheet.blank(style, width, height)
    looks = [_look(sheet, random, most) for _ in range(min(most, 200))]
    heights = [look.height for look in looks]
    while len(looks) > 1 and sum(heights) + 8 > height:
        looks.pop()
        heights.pop()
    spare = max(0.0, height - 8 - sum(heights))
    cuts = sorted(random.uniform(0, spare) for _ in looks)
    done, y = 0, 3.0
    for look, cut in zip(looks, cuts, strict=True):
        done += _row(sheet, random, look, y + cut, most - done)
        y += look.height
        if done >= most:
            break
    return sheet.scene("strings")


def _look(sheet: Sheet, random: Random, most: int) -> Look:
    scale = random.choice((1, 1, random.uniform(0.8, 1.6), random.uniform(1, 2.5) if most < 5 else 1))
    ink = readable(random, sheet.style.background) if random.random() < 0.4 else sheet.style.ink
    return sheet.look(scale, random.random() < 0.3, ink)


def _row(sheet: Sheet, random: Random, look: Look, y: float, most: int) -> int:
    """Strings side by side on one baseline; how many."""
    done, left = 0, 4.0
    for _ in range(12):
        text = words.string(random)
        long = look.length(text)
        free = sheet.width - 4 - left - long
        if free < 0:
            continue
        at = left + random.uniform(0, free if random.random() < 0.5 else min(free, look.size * 3))
        done += sheet.put(text, at, y, look)
        left = at + long + look.size * 1.2
        if done == most or random.random() < 0.35:
            break
    return done
