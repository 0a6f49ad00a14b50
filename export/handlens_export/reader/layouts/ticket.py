"""A ticket or boarding pass: a band with a title, labels over values in cells, a barcode."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Column, Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_FIELDS: tuple[tuple[str, words.Value], ...] = (
    *(("Gate", words.code), ("Seat", words.code), ("From", words.place), ("To", words.place), ("Date", words.date)),
    *(("Time", words.clock), ("Flight", words.code), ("Passenger", words.person), ("Class", words.word)),
    *(("Price", words.price), ("Boarding", words.clock), ("Train", words.number), ("Row", words.number)),
    *(("Ticket No", words.code), ("Platform", words.number), ("Hall", words.nonsense), ("Ref", words.code)),
)
_TITLES = ("Boarding Pass", "Ticket", "Concert", "Admit One", "Train Ticket", "Cinema", "Day Pass", "Ferry", "Voucher")


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """Cells in two or more columns; what a large page has room for beyond the usual fields is made up."""
    sheet = Sheet.blank(style, width, height)
    top = _band(sheet, random)
    foot = _barcode(sheet, random) if height > 150 and random.random() < 0.6 else height - 4.0
    across = max(1, min(int(width / (sheet.size * random.uniform(6.5, 9))), 6))
    cells = [
        Column(sheet, random, width / across * i + 6, width / across * (i + 1) - 4, top, foot) for i in range(across)
    ]
    _fill(sheet, cells, random)
    return sheet.scene("ticket")


def _fill(sheet: Sheet, cells: list[Column], random: Random) -> None:
    own, waiting = sheet.look(random.choice((0.75, 0.9, 1))), random.sample(_FIELDS, len(_FIELDS))
    name = sheet.look(own.size / sheet.size, ink=random.choice((sheet.style.ink, sheet.style.accent)))
    shown = sheet.look(random.choice((1, 1.15)), strong=random.random() < 0.5)
    y = cells[0].y
    for _ in range(60):
        for cell in cells:
            cell.y = y
            for _ in range(4):
                title, value = waiting.pop() if waiting else (words.label(random), words.value)
                if cell.stack(sheet.style.label(title), value(random), name, shown):
                    break
        y += name.height + cells[0].row(shown) + 3
        if y + name.height + shown.height > cells[0].bottom:
            return


def _band(sheet: Sheet, random: Random) -> float:
    """Where the band ends."""
    look = sheet.look(random.choice((1, 1.3)), strong=True, ink=sheet.style.on_panel)
    if sheet.height < look.height * 4 or random.random() < 0.2:
        return 4
    end = look.height + 6
    sheet.fill((0, 0, sheet.width, end), sheet.style.panel.rgb)
    sheet.put(random.choice((random.choice(_TITLES), words.company(random))), 6, 3, look)
    return end + random.randint(3, 8)


def _barcode(sheet: Sheet, random: Random) -> float:
    """Bars along the foot; where they begin."""
    top, x = sheet.height - random.uniform(18, 32), 6.0
    while x < sheet.width - 10:
        wide = random.choice((1, 1, 2, 3))
        sheet.fill((x, top, x + wide - 1, sheet.height - 5), sheet.style.ink.rgb)
        x += wide + random.choice((1, 2, 3))
    return top - 3
