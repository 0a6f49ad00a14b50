"""A bar chart with the bars' labels and values."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Look, Sheet
from handlens_export.reader.layouts.style import Ink, Style, visible
from handlens_export.reader.scene import Scene

_LABELS: tuple[words.Value, ...] = (words.item, words.place, words.nonsense, words.code)


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """Bars that stand where there are few, that lie where there are many."""
    sheet = Sheet.blank(style, width, height)
    title, top = sheet.look(random.choice((1, 1.3)), strong=True), 4.0
    if height > title.height * 5 and random.random() < 0.75:
        sheet.put(random.choice((words.phrase, words.company, words.place))(random), random.uniform(5, 20), 3, title)
        top += title.height + 4
    several = random.random() < 0.7
    single = visible(random, style.background)
    inks = [visible(random, style.background) if several else single for _ in range(100)]
    stand = random.random() < max(0.1, min(0.6, 200 / width))
    (_standing if stand else _lying)(sheet, random, inks, top)
    return sheet.scene("chart")


def _values(random: Random, count: int) -> list[int]:
    """Distinct whole numbers, none under a twentieth of the largest, so that lengths can be told apart."""
    most = random.choice((20, 50, 100, 100, 1000, 5000))
    return random.sample(range(max(1, most // 20), most + count), count)


def _labels(random: Random, count: int, look: Look, room: float) -> list[str]:
    draw = random.choice(_LABELS)
    drawn = (draw(random) for _ in range(count * 4))
    unique = {text.lower(): text for text in drawn if look.length(text) <= room}
    return list(unique.values())[:count]


def _standing(sheet: Sheet, random: Random, inks: list[Ink], top: float) -> None:
    look = sheet.look()
    slot = look.size * random.uniform(4, 6)
    count = max(2, min(8, int((sheet.width - 8) / slot)))
    slot = (sheet.width - 8) / count
    labels = _labels(random, count, look, slot - look.size * 0.5)
    values = _values(random, len(labels))
    base, ceiling = sheet.height - look.height - 5, top + look.height + 2
    if base - ceiling < 15:
        return
    for index, (label, value, ink) in enumerate(zip(labels, values, inks, strict=False)):
        middle, tall = 4 + slot * (index + 0.5), (base - ceiling) * value / max(values)
        sheet.page.shape("bar", (middle - slot * 0.3, base - tall, middle + slot * 0.3, base), *ink)
        sheet.put(label, middle - look.length(label) / 2, base + 3, look)
        if sheet.put(str(value), middle - look.length(str(value)) / 2, base - tall - look.height - 1, look):
            sheet.note(label, str(value), look.ink)


def _lying(sheet: Sheet, random: Random, inks: list[Ink], top: float) -> None:
    look = sheet.look()
    step = look.height * random.uniform(1.1, 1.7)
    count = max(1, min(len(inks), int((sheet.height - top - 4) / step)))
    count = count if random.random() < 0.6 else random.randint(1, count)
    labels = _labels(random, count, look, sheet.width * 0.4)
    values = _values(random, len(labels))
    start = 8 + max((look.length(label) for label in labels), default=0) + look.size * 0.4
    full = sheet.width - start - look.length("00000") - 8
    if full < 20:
        return
    for index, (label, value, ink) in enumerate(zip(labels, values, inks, strict=False)):
        y, end = top + index * step, start + full * value / max(values)
        sheet.page.shape("bar", (start, y + look.height * 0.1, end, y + look.height * 0.9), *ink)
        if sheet.put(label, 5, y, look) and sheet.put(str(value), end + look.size * 0.3, y, look):
            sheet.note(label, str(value), look.ink)
