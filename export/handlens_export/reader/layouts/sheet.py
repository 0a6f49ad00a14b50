"""A page under construction: writes what fits, refuses what does not, and gathers the fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from random import Random
from typing import Literal

from handlens_export.reader import words
from handlens_export.reader.layouts.style import Ink, Style
from handlens_export.reader.page import RGB, Page, opened, text_box
from handlens_export.reader.scene import Field, Scene

Align = Literal["left", "middle", "right"]
TILE = 224
"""Side of the tile that `Scene.small` speaks of."""
_READABLE = 6.5
"""Text of fewer pixels than this cannot be read in the tile."""
_MARGIN = 4


@dataclass(frozen=True)
class Look:
    """A font, its size in pixels and its ink."""

    font: Path
    size: int
    ink: Ink

    @property
    def height(self) -> int:
        """From the ascender to the descender, and never so little that the ink of two rows meets."""
        ascent, descent = opened(self.font, self.size).getmetrics()
        return max(ascent + descent, ceil(self.size * 1.15) + 1)

    def length(self, text: str) -> float:
        """In pixels, with what ink reaches over either end."""
        left, _, right, _ = text_box(self.font, self.size, text)
        return right - min(0, left)


@dataclass
class Sheet:
    """A blank page of a style."""

    style: Style
    page: Page
    size: int
    """Of the text: the style's, less on a page that it would not fit."""
    fields: list[Field] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    @classmethod
    def blank(cls, style: Style, width: int, height: int) -> Sheet:
        """A page of the style's background, `width` by `height` pixels."""
        size = min(style.size, max(12, min(width // 8, height // 5)))
        return cls(style, Page.blank(width, height, style.background), size)

    @property
    def width(self) -> int:
        """Of the page."""
        return self.page.image.width

    @property
    def height(self) -> int:
        """Of the page."""
        return self.page.image.height

    def look(self, scale: float = 1.0, strong: bool = False, ink: Ink | None = None) -> Look:
        """The style's font at a multiple of the page's text size, never under 14 pixels."""
        font = self.style.strong if strong else self.style.regular
        return Look(font, max(14, round(self.size * scale)), ink or self.style.ink)

    def put(self, text: str, left: float, top: float, look: Look, within: tuple[float, float] | None = None) -> bool:
        """Write a run of text if it stays between the x of `within` and on the page; whether it was written.

        No ink is left of `left`: an italic letter that leans over its start moves the run to the right.
        """
        least, most = within or (_MARGIN, self.width - _MARGIN)
        start, high, end, low = text_box(look.font, look.size, text)
        left -= min(0, start)
        if left + start < least - 1 or left + end > most + 1 or top + high < 0 or top + low > self.height:
            return False
        self.page.write((round(left), round(top)), text, look.font, look.size, look.ink.rgb, look.ink.colour)
        return True

    def is_new(self, *names: str) -> bool:
        """Whether none of these is a field's name yet, in any case: a name must say which field it is."""
        return not self._names & {name.lower() for name in names}

    def note(self, name: str, value: str, ink: Ink) -> None:
        """Record a field whose value was written."""
        self._names.add(name.lower())
        self.fields.append(Field(name, value, ink.colour))

    def fill(self, box: tuple[float, float, float, float], colour: RGB) -> None:
        """A plain rectangle that no question asks about."""
        self.page.draw.rectangle(box, fill=colour)

    def columns(self, random: Random, wide: float = 17) -> list[Column]:
        """One to as many columns as have room for `wide` times the text size each."""
        most = max(1, min(4, int(self.width / (wide * self.size))))
        count = random.randint(1, most)
        across, pad = self.width / count, max(_MARGIN, self.size * random.uniform(0.3 if count == 1 else 0.6, 1.2))
        return [
            Column(self, random, across * i + pad, across * (i + 1) - pad, pad, self.height - _MARGIN)
            for i in range(count)
        ]

    def scene(self, layout: str) -> Scene:
        """What was drawn, fields in reading order."""
        small = self.size * TILE / max(self.width, self.height) < _READABLE
        return Scene(layout, self.page, tuple(self.fields), small)


@dataclass
class Column:
    """A part of a sheet that is filled from the top down."""

    sheet: Sheet
    random: Random
    left: float
    right: float
    y: float
    """Where the next row begins."""
    bottom: float

    def row(self, look: Look) -> int:
        """Height of a row."""
        return round(look.height * self.sheet.style.leading)

    def has_room(self, look: Look, rows: int = 1) -> bool:
        """Whether so many rows still fit."""
        return self.y + self.row(look) * (rows - 1) + look.height <= self.bottom

    def skip(self, pixels: float) -> None:
        """Leave a gap."""
        self.y += pixels

    def rule(self) -> None:
        """A faint line across, in a gap of its own."""
        self.sheet.page.draw.line((self.left, self.y + 2, self.right, self.y + 2), fill=self.sheet.style.faint)
        self.skip(5)

    def text(self, text: str, look: Look, align: Align = "left") -> bool:
        """A row of one run; whether it fitted."""
        free = self.right - self.left - look.length(text)
        start = self.left + free * {"left": 0.0, "middle": 0.5, "right": 1.0}[align]
        if not self.has_room(look) or not self.sheet.put(text, start, self.y, look, (self.left, self.right)):
            return False
        self.skip(self.row(look))
        return True

    def pair(self, name: str, value: str, look: Look, shown: Look | None = None, follow: str | None = None) -> bool:
        """A row with a field's name and value; whether it was written.

        The value, in the look `shown`, is at the right end, or right behind the name and `follow`, such as a colon.
        """
        if not self.sheet.is_new(name):
            return False
        shown, written = shown or look, name + (follow or "")
        gap, length = look.size * 0.6, look.length(written)
        start = self.right - shown.length(value) if follow is None else self.left + length + gap
        tall = max(look, shown, key=lambda each: each.height)
        fits = self.left + length + gap <= start and start + shown.length(value) <= self.right and self.has_room(tall)
        if not fits:
            return False
        down = _ascent(tall)
        if not self.sheet.put(written, self.left, self.y + down - _ascent(look), look, (self.left, self.right)):
            return False
        if not self.sheet.put(value, start, self.y + down - _ascent(shown), shown, (self.left, self.right)):
            return False
        self.sheet.note(name, value, shown.ink)
        self.skip(self.row(tall))
        return True

    def stack(self, name: str, value: str, look: Look, shown: Look) -> bool:
        """A field's name with its value in the row below; whether it was written."""
        if not self.sheet.is_new(name) or self.y + look.height + shown.height > self.bottom:
            return False
        if max(look.length(name), shown.length(value)) > self.right - self.left:
            return False
        if not self.sheet.put(name, self.left, self.y, look) or not self.sheet.put(
            value, self.left, self.y + look.height, shown
        ):
            return False
        self.sheet.note(name, value, shown.ink)
        self.skip(look.height + self.row(shown))
        return True

    def pairs(self, name: words.Value, value: words.Value, look: Look, most: int, follow: str | None = None) -> int:
        """Up to `most` rows of random fields, drawing others where one does not fit; how many were written."""
        done = 0
        for _ in range(most * 3):
            if done == most or not self.has_room(look):
                break
            lit = Look(look.font, look.size, self.sheet.style.accent) if self.random.random() < 0.2 else look
            both = self.random.random() < 0.5
            title = self.sheet.style.label(name(self.random))
            done += self.pair(title, value(self.random), lit if both else look, lit, follow)
        return done


def _ascent(look: Look) -> int:
    return opened(look.font, look.size).getmetrics()[0]
