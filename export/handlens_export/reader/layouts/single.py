"""One string, anywhere: the first thing that a decoder learns to copy."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from handlens_export.reader.layouts.strings import draw_some
from handlens_export.reader.layouts.style import Style
from handlens_export.reader.scene import Scene


def draw(random: Random, style: Style, width: int, height: int) -> Scene:
    """A string of the page's text size or larger."""
    return replace(draw_some(random, style, width, height, most=1), layout="single")
