"""A departure board: a coloured title bar over rows of destinations. Held out of training."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.grid import Head, draw_grid
from handlens_export.reader.layouts.sheet import Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_COLUMNS = (
    *(Head("Time", words.clock), Head("Platform", words.number), Head("Line", words.code), Head("Track", words.code)),
    *(Head("Arrival", words.clock), Head("Delay", words.measure), Head("Fare", words.price), Head("Via", words.place)),
)


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """Fields are called `Time of Zurich`."""
    sheet = Sheet.blank(style, width, height)
    look, top = sheet.look(1.2, strong=True, ink=style.on_panel), 4.0
    if height > look.height * 4:
        top = look.height + 6
        sheet.fill((0, 0, width, top), style.panel.rgb)
        sheet.put(random.choice(("Departures", "Arrivals", words.place(random))), 8, 3, look)
        hour = words.clock(random)
        if width > look.length("Departures 00:00") + 40:
            sheet.put(hour, width - 8 - look.length(hour), 3, look)
    keys = (Head("To", words.place), Head("Stop", words.place), Head("Destination", words.place))
    draw_grid(sheet, random, random.choice(keys), random.sample(_COLUMNS, len(_COLUMNS)), top + 3)
    return sheet.scene("timetable")
