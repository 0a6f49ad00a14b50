"""A receipt: the shop, the day, what was bought, the total."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Column, Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_DETAILS: tuple[tuple[str, words.Value], ...] = (
    ("Date", words.date),
    ("Time", words.clock),
    ("No", words.code),
    ("Cashier", words.person),
    ("Card", words.code),
    ("Table", words.number),
    ("Tel", words.phone),
)
_SUMS = ("Total", "Tax", "Cash", "Change", "Tip", "Subtotal", "Discount")


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """One receipt; on a wide page its items go on in further columns."""
    sheet = Sheet.blank(style, width, height)
    first, *others = sheet.columns(random)
    _head(sheet, first, random)
    body, total = sheet.look(), sheet.look(random.choice((1, 1, 1.25)), strong=True, ink=style.accent)
    follow = random.choice((None, ":"))
    details = random.sample(_DETAILS, random.randint(0, min(3, int(first.bottom / first.row(body) / 3))))
    for name, value in details:
        first.pair(style.label(name), value(random), body, follow=follow)
    first.rule()
    start = first.y
    ends = random.sample(_SUMS, random.randint(1, 3))
    for column in (first, *others):
        column.y = start
        last = column is (others or [first])[-1]
        kept = column.bottom
        column.bottom -= (column.row(total) * len(ends) + 6) * last
        column.pairs(words.item, words.price, body, most=random.randint(1, 60))
        column.bottom = kept
        if last:
            column.rule()
            for name in ends:
                column.pair(style.label(name), f"{words.amount(random):.2f}", total if name == "Total" else body)
    return sheet.scene("receipt")


def _head(sheet: Sheet, column: Column, random: Random) -> None:
    title = sheet.look(random.choice((1.2, 1.5)), strong=True)
    if column.has_room(title, 3):
        column.text(words.company(random), title, "middle")
    if column.has_room(title, 5) and random.random() < 0.6:
        column.text(f"{random.randint(1, 199)} {words.place(random)} Street", sheet.look(0.9), "middle")
