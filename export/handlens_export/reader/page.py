"""A drawing surface that remembers what it drew: every glyph's place, every line's text, every shape.

The dense labels of training and the answers of the questions both come from this record, so neither can be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Colour = Literal["black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "brown", "pink"]
"""The names that questions and answers use."""
ShapeKind = Literal["circle", "square", "triangle", "star", "cross", "ring", "bar"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the page."""
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Line:
    """One run of text on one baseline, in one font and colour."""

    text: str
    box: Box
    colour: Colour
    """The nearest name of its ink."""
    centres: tuple[float, ...]
    """x of each character's middle."""

    @property
    def y(self) -> float:
        """Its middle."""
        return (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Shape:
    """A coloured figure."""

    kind: ShapeKind
    colour: Colour
    box: Box


@dataclass
class Page:
    """RGB pixels and the record of what is on them."""

    image: Image.Image
    lines: list[Line] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    @classmethod
    def blank(cls, width: int, height: int, background: RGB) -> Page:
        """A page of one colour."""
        return cls(Image.new("RGB", (width, height), background))

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """For rules, frames and fillings that no question asks about."""
        return ImageDraw.Draw(self.image)

    def write(self, at: tuple[float, float], text: str, font: Path, size: int, ink: RGB, colour: Colour) -> Box:
        """Write one line, its ascender at `at` (left, top); its box.

        `text` is what a question may ask for, so no space at either end. What reaches over the page's edge is a
        defect of the layout: ValueError.
        """
        if not text or text != text.strip():
            raise ValueError(f"text {text!r} is empty or has spaces at its ends")
        left, top, right, bottom = box = _moved(text_box(font, size, text), at)
        if left < -1 or top < -1 or right > self.image.width + 1 or bottom > self.image.height + 1:
            raise ValueError(f"{text!r} at {box} leaves the page of {self.image.size}")
        self.draw.text(at, text, fill=ink, font=opened(font, size))
        self.lines.append(Line(text, box, colour, _centres(text, font, size, at[0])))
        return box

    def shape(self, kind: ShapeKind, box: Box, ink: RGB, colour: Colour) -> None:
        """Draw a figure that fills `box`."""
        left, top, right, bottom = box
        across, down = right - left, bottom - top
        match kind:
            case "circle":
                self.draw.ellipse(box, fill=ink)
            case "ring":
                self.draw.ellipse(box, outline=ink, width=max(2, int(min(across, down) / 6)))
            case "square" | "bar":
                self.draw.rectangle(box, fill=ink)
            case "triangle":
                self._polygon(box, ink, ((0.5, 0), (1, 1), (0, 1)))
            case "star":
                self._polygon(box, ink, _STAR)
            case "cross":
                self.draw.rectangle((left + across * 0.36, top, left + across * 0.64, bottom), fill=ink)
                self.draw.rectangle((left, top + down * 0.36, right, top + down * 0.64), fill=ink)
        self.shapes.append(Shape(kind, colour, box))

    def _polygon(self, box: Box, ink: RGB, corners: Sequence[tuple[float, float]]) -> None:
        left, top, right, bottom = box
        self.draw.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in corners], fill=ink)


_STAR = (
    *((0.5, 0.0), (0.62, 0.35), (0.98, 0.35), (0.69, 0.57), (0.79, 0.91)),
    *((0.5, 0.7), (0.21, 0.91), (0.31, 0.57), (0.02, 0.35), (0.38, 0.35)),
)


@lru_cache(maxsize=4096)
def opened(font: Path, size: int) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels, opened once."""
    return ImageFont.truetype(str(font), size)


@lru_cache(maxsize=1 << 14)
def text_box(font: Path, size: int, text: str) -> Box:
    """Box of the ink of `text` written at (0, 0). A layout asks whether it fits, then writes it: FreeType is slow."""
    return opened(font, size).getbbox(text)


@lru_cache(maxsize=1 << 16)
def _advance(font: Path, size: int, character: str) -> float:
    return opened(font, size).getlength(character)


def _centres(text: str, font: Path, size: int, left: float) -> tuple[float, ...]:
    """Kerning, a fraction of a pixel, is left out: asking FreeType for every beginning would cost more than drawing."""
    centres = []
    for character in text:
        advance = _advance(font, size, character)
        centres.append(left + advance / 2)
        left += advance
    return tuple(centres)


def _moved(box: tuple[float, float, float, float], by: tuple[float, float]) -> Box:
    return box[0] + by[0], box[1] + by[1], box[2] + by[0], box[3] + by[1]
