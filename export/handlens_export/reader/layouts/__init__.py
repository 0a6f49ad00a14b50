"""The kinds of page, one file each; a model never sees those of `HELD_OUT` in training."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from handlens_export.reader.layouts import (
    badge,
    chart,
    paragraph,
    receipt,
    screen,
    shapes,
    sign,
    single,
    strings,
    table,
    ticket,
    timetable,
)
from handlens_export.reader.layouts.style import Style, drawn_style
from handlens_export.reader.scene import Scene

Draw = Callable[[Random, Style, int, int], Scene]
"""(random, style, width, height): a page of about that many pixels."""

LAYOUTS: dict[str, Draw] = {
    "receipt": receipt.draw,
    "sign": sign.draw,
    "screen": screen.draw,
    "table": table.draw,
    "ticket": ticket.draw,
    "chart": chart.draw,
    "shapes": shapes.draw,
    "strings": strings.draw,
    "single": single.draw,
    "paragraph": paragraph.draw,
    "badge": badge.draw,
    "timetable": timetable.draw,
}
HELD_OUT = ("badge", "timetable")

__all__ = ["HELD_OUT", "LAYOUTS", "Draw", "Style", "drawn_style"]
