"""A sign on a coloured plate: a large title over a directory of rooms, gates or roads."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Align, Column, Look, Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_TITLES = ("EXIT", "OPEN", "CLOSED", "PLATFORM", "WELCOME", "PARKING", "NO ENTRY", "STOP", "TAXI", "INFO", "LIFT")


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """A few centred lines, or a directory that fills the plate."""
    sheet = Sheet.blank(style, width, height)
    plated = random.random() < 0.75
    ink = style.on_panel if plated else style.ink
    edge = random.randint(1, 4)
    if plated:
        sheet.fill((edge, edge, width - edge, height - edge), style.panel.rgb)
    columns = sheet.columns(random)
    directory = random.random() < 0.6
    if directory and _title(sheet, columns[0], random, ink_look=sheet.look(1.4, strong=True, ink=ink)):
        for column in columns[1:]:
            column.y = columns[0].y
    for column in columns:
        column.skip(edge)
        if directory:
            _directory(column, random, sheet.look(ink=ink))
        else:
            _lines(column, random, sheet, ink_look=sheet.look(ink=ink))
    return sheet.scene("sign")


def _title(sheet: Sheet, column: Column, random: Random, ink_look: Look) -> bool:
    text = random.choice((random.choice(_TITLES), words.place(random).upper(), words.company(random)))
    return column.has_room(ink_look, 3) and column.text(text, ink_look, random.choice(("left", "middle")))


def _directory(column: Column, random: Random, look: Look) -> None:
    name = random.choice((words.person, words.place, words.company))
    value = random.choice((words.code, words.measure, words.number, words.phone))
    misses = 0
    while misses < 8 and column.has_room(look):
        misses += not column.pair(name(random), value(random), look)


def _lines(column: Column, random: Random, sheet: Sheet, ink_look: Look) -> None:
    align: Align = random.choice(("left", "middle", "middle", "right"))
    misses = 0
    while misses < 8 and column.has_room(ink_look):
        look = sheet.look(random.uniform(0.9, 2.6), random.random() < 0.5, ink_look.ink)
        text = random.choice((random.choice(_TITLES), words.place(random), words.phrase(random), words.code(random)))
        misses += not column.text(text, look if column.has_room(look) else ink_look, align)
