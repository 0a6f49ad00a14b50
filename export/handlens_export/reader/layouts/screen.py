"""A phone's screen: a header bar over rows of settings, contacts or details."""

from __future__ import annotations

from random import Random

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Column, Look, Sheet
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene

_TITLES = ("Settings", "Contacts", "Details", "Profile", "Device", "Messages", "Wallet", "Order", "Network", "About")
_SETTINGS = ("On", "Off", "Auto", "Never", "Always", "High", "Low")


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """Settings with values at the right, or names with what belongs to them below."""
    sheet = Sheet.blank(style, width, height)
    top = _header(sheet, random) + random.uniform(2, 6)
    contacts = random.random() < 0.4
    name = sheet.look(strong=True, ink=random.choice((style.ink, style.accent)))
    shown = sheet.look(random.choice((0.85, 1)))
    for column in sheet.columns(random):
        column.y = top
        if contacts:
            _contacts(column, random, name, shown)
        else:
            _settings(sheet, column, random)
    return sheet.scene("screen")


def _header(sheet: Sheet, random: Random) -> float:
    """The bar, with a title and at times the hour; where it ends."""
    look = sheet.look(random.choice((1, 1.2)), strong=True, ink=sheet.style.on_panel)
    if sheet.height < look.height * 4:
        return 0
    pad = random.uniform(2, 6)
    end = look.height + 2 * pad
    sheet.fill((0, 0, sheet.width, end), sheet.style.panel.rgb)
    title, hour = random.choice((random.choice(_TITLES), words.person(random))), words.clock(random)
    both = look.length(title) + look.length(hour) + 4 * pad + look.size < sheet.width
    sheet.put(title, 2 * pad, pad, look)
    if both and random.random() < 0.7:
        sheet.put(hour, sheet.width - 2 * pad - look.length(hour), pad, look)
    return end


def _settings(sheet: Sheet, column: Column, random: Random) -> None:
    look, follow = sheet.look(), random.choice((None, None, ":"))
    while column.has_room(look):
        before = column.y
        value = (lambda each: each.choice(_SETTINGS)) if random.random() < 0.25 else words.value
        column.pairs(words.label, value, look, 1, follow)
        if column.y == before:
            break
        column.rule()


def _contacts(column: Column, random: Random, name: Look, shown: Look) -> None:
    value = random.choice((words.phone, words.code, words.date, words.value))
    misses = 0
    while misses < 8 and column.has_room(name, 2):
        if column.stack(words.person(random), value(random), name, shown):
            column.rule()
        else:
            misses += 1
