"""How one page looks: its fonts, sizes, colours and spacing."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from handlens_export.reader.page import RGB, Colour

_RANGES: dict[Colour, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "black": ((0, 360), (0, 0.15), (0, 0.13)),
    "white": ((0, 360), (0, 0.02), (0.96, 1)),
    "grey": ((0, 360), (0, 0.04), (0.42, 0.6)),
    "red": ((354, 363), (0.82, 1), (0.72, 0.95)),
    "orange": ((25, 34), (0.9, 1), (0.93, 1)),
    "yellow": ((51, 58), (0.75, 1), (0.93, 1)),
    "green": ((105, 145), (0.65, 1), (0.4, 0.85)),
    "blue": ((213, 234), (0.7, 1), (0.6, 1)),
    "purple": ((270, 287), (0.65, 0.95), (0.5, 0.8)),
    "brown": ((18, 28), (0.6, 0.8), (0.34, 0.48)),
    "pink": ((325, 342), (0.32, 0.5), (0.96, 1)),
}
"""Hue in degrees, saturation and value from 0 to 1, set apart so that a person would give each the same name."""
COLOURS: tuple[Colour, ...] = tuple(_RANGES)
_TEXT_COLOURS: tuple[Colour, ...] = tuple(colour for colour in COLOURS if colour != "grey")
"""Thin black or white letters look grey, so none are."""
_PLAIN_CONTRAST, _TEXT_CONTRAST = 1.6, 4.0

Case = Literal["title", "upper", "lower"]


class Ink(NamedTuple):
    """A colour and its name."""

    rgb: RGB
    colour: Colour


@dataclass(frozen=True)
class Style:
    """Everything about a page but its content."""

    regular: Path
    strong: Path
    """The font of titles and headers."""
    size: int
    """Of the text, in pixels of the drawn page."""
    background: RGB
    ink: Ink
    accent: Ink
    """Of what stands out: another colour than the ink's, as readable."""
    panel: Ink
    """A filling for bars and plates; `on_panel` is readable on it."""
    on_panel: Ink
    faint: RGB
    """Of rules and frames: no question asks about it."""
    leading: float
    """Height of a row in heights of the font."""
    case: Case
    """Of field names."""

    def label(self, text: str) -> str:
        """A field's name in the page's case."""
        return {"title": text, "upper": text.upper(), "lower": text.lower()}[self.case]


def drawn_style(random: Random, fonts: Sequence[Path]) -> Style:
    """A style in some of the given font files."""
    background = _background(random)
    ink = _text_ink(random, background)
    panel = shade(random, random.choice(("red", "green", "blue", "purple", "brown", "grey", "black", "orange")))
    return Style(
        regular=random.choice(fonts),
        strong=random.choice(fonts),
        size=random.randint(18, 24) if random.random() < 0.75 else random.randint(16, 32),
        background=background,
        ink=ink,
        accent=readable(random, background, without=ink.colour),
        panel=panel,
        on_panel=_text_ink(random, panel.rgb),
        faint=_blend(background, ink.rgb, random.uniform(0.15, 0.35)),
        leading=random.uniform(1.02, 1.45),
        case=random.choice(("title", "title", "upper", "lower")),
    )


def shade(random: Random, colour: Colour) -> Ink:
    """One of the many RGB values that bear a name."""
    hue, saturation, value = (random.uniform(*ends) for ends in _RANGES[colour])
    red, green, blue = hsv_to_rgb(hue % 360 / 360, saturation, value)
    return Ink((round(red * 255), round(green * 255), round(blue * 255)), colour)


def readable(random: Random, background: RGB, without: Colour | None = None) -> Ink:
    """A random ink for text on a background, of another colour than `without`."""
    return _contrasting(random, background, _TEXT_CONTRAST, [each for each in _TEXT_COLOURS if each != without])


def visible(random: Random, background: RGB) -> Ink:
    """A random colour for a figure on a background."""
    return _contrasting(random, background, _PLAIN_CONTRAST, COLOURS)


def contrast(one: RGB, other: RGB) -> float:
    """WCAG 2's contrast ratio, 1 to 21."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _contrasting(random: Random, background: RGB, least: float, colours: Sequence[Colour]) -> Ink:
    for _ in range(40):
        ink = shade(random, random.choice(colours))
        if contrast(ink.rgb, background) >= least:
            return ink
    names: tuple[Colour, Colour] = ("black", "white") if _luminance(background) > 0.18 else ("white", "black")
    return shade(random, names[names[0] not in colours])


def _text_ink(random: Random, background: RGB) -> Ink:
    """Black or white in most pages, as in the world."""
    if random.random() < 0.25:
        return readable(random, background)
    return shade(random, "black" if _luminance(background) > 0.18 else "white")


def _background(random: Random) -> RGB:
    draw = random.random()
    if draw < 0.15:
        return shade(random, "black").rgb
    if draw < 0.45:
        return shade(random, "white").rgb
    red, green, blue = hsv_to_rgb(random.random(), random.uniform(0, 0.14), random.uniform(0.88, 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def _luminance(colour: RGB) -> float:
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _blend(one: RGB, other: RGB, share: float) -> RGB:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
