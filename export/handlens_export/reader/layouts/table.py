"""A table: a header, a key in the first column and values in the others."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.grid import Head, draw_grid
from handlens_export.reader.layouts.sheet import Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_KEYS: tuple[Head, ...] = (
    Head("Item", words.item),
    Head("Name", words.person),
    Head("City", words.place),
    Head("Code", words.code),
    Head("Part", words.nonsense),
)
_VALUES: tuple[Head, ...] = (
    *(Head("Price", words.price), Head("Qty", words.number), Head("Size", words.measure), Head("Date", words.date)),
    *(Head("Time", words.clock), Head("Room", words.code), Head("Stock", words.number), Head("ID", words.code)),
    *(Head("Phone", words.phone), Head("Weight", words.measure), Head("Team", words.nonsense)),
)


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """As many columns and rows as fit, framed, striped or plain. Fields are called `Price of Mango`."""
    sheet = Sheet.blank(style, width, height)
    draw_grid(sheet, random, random.choice(_KEYS), random.sample(_VALUES, len(_VALUES)))
    return sheet.scene("table")
