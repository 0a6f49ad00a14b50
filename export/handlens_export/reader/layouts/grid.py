"""Rows and columns of cells, for the layouts that have them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from handlens_export.reader import words
from handlens_export.reader.layouts.sheet import Align, Look, Sheet


class Head(NamedTuple):
    """A column: what its first row says and what its cells hold."""

    name: str
    value: words.Value


def draw_grid(sheet: Sheet, random: Random, key: Head, values: Sequence[Head], top: float = 4) -> None:
    """From `top` to the foot of the page; the field of a cell is called after its column and its row's key."""
    body, strong = sheet.look(), sheet.look(strong=True, ink=sheet.style.accent)
    key, *heads = [Head(sheet.style.label(head.name), head.value) for head in (key, *values)]
    step = round(max(body.height, strong.height) * sheet.style.leading) + random.randint(1, 5)
    rows = _rows(sheet, random, key, heads, max(1, int((sheet.height - top - 4) / step) - 1))
    spans = _spans(sheet, random, [[key.name, *(head.name for head in heads)], *rows], body, strong)
    if len(spans) < 2:
        spans = [(4.0, sheet.width * 0.55), (sheet.width * 0.55 + 4, sheet.width - 4.0)]
        rows = [row for row in rows if all(map(lambda text, span: _fits(text, span, body), row[:2], spans))]
    _rules(sheet, random, spans, top, step, len(rows) + 1)
    align: Align = random.choice(("left", "right"))
    headed = [
        _cell(sheet, head.name, span, top + 2, strong, align if index else "left")
        for index, (head, span) in enumerate(zip((key, *heads), spans, strict=False))
    ]
    for index, row in enumerate(rows, 1):
        y = top + index * step + 2
        if y + body.height > sheet.height or not _cell(sheet, row[0], spans[0], y, body, "left"):
            continue
        for span, named, head, value in zip(spans[1:], headed[1:], heads, row[1:], strict=False):
            if _cell(sheet, value, span, y, body, align) and named:
                sheet.note(f"{head.name} of {row[0]}", value, body.ink)


def _rows(sheet: Sheet, random: Random, key: Head, heads: Sequence[Head], most: int) -> list[list[str]]:
    count = most if random.random() < 0.7 else random.randint(1, most)
    keys = list(dict.fromkeys(key.value(random) for _ in range(count)))
    return [[each, *(head.value(random) for head in heads)] for each in keys]


def _spans(sheet: Sheet, random: Random, rows: list[list[str]], body: Look, strong: Look) -> list[tuple[float, float]]:
    """Left and right of the columns that fit, the space left over spread among them."""
    most, widths = random.randint(2, 10), list[float]()
    for index in range(len(rows[0])):
        wide = max([strong.length(rows[0][index]), *(body.length(row[index]) for row in rows[1:])]) + body.size
        if sum(widths) + wide > sheet.width - 8 or len(widths) == most:
            break
        widths.append(wide)
    spare = (sheet.width - 8 - sum(widths)) / max(1, len(widths)) * random.random()
    spans, left = [], 4.0
    for wide in widths:
        spans.append((left + body.size * 0.3, left + wide + spare - body.size * 0.3))
        left += wide + spare
    return spans


def _cell(sheet: Sheet, text: str, span: tuple[float, float], y: float, look: Look, align: Align) -> bool:
    free = span[1] - span[0] - look.length(text)
    return _fits(text, span, look) and sheet.put(text, span[0] + free * (align == "right"), y, look, span)


def _fits(text: str, span: tuple[float, float], look: Look) -> bool:
    return look.length(text) <= span[1] - span[0]


def _rules(sheet: Sheet, random: Random, spans: list[tuple[float, float]], top: float, step: int, rows: int) -> None:
    kind, end = random.choice(("lines", "frame", "header", "plain")), spans[-1][1] + 2
    foot = min(sheet.height - 1, top + rows * step)
    if kind == "plain":
        return
    for index in range(rows + 1) if kind != "header" else (1,):
        y = top + index * step
        if y < sheet.height:
            sheet.page.draw.line((2, y, end, y), fill=sheet.style.faint)
    if kind == "frame":
        for x in (2, *(right + 2 for _, right in spans)):
            sheet.page.draw.line((x, top, x, foot), fill=sheet.style.faint)
