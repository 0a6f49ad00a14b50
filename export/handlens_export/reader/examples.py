"""One example: a page drawn, photographed and asked about, from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from handlens_export.reader.camera import Affine, photograph
from handlens_export.reader.fonts import Family, families, font_files
from handlens_export.reader.layouts import LAYOUTS, drawn_style
from handlens_export.reader.page import Page
from handlens_export.reader.questions import KINDS, turns
from handlens_export.reader.scene import Kind, Turn

TILE = 224


@dataclass(frozen=True)
class Example:
    """A picture, what is known of it, and questions with their answers."""

    picture: Image.Image
    page: Page
    where: Affine
    """From the page's points to the picture's."""
    layout: str
    family: str
    """Of its fonts."""
    turns: tuple[Turn, ...]
    small: bool
    """As `Scene.small`."""


def example(
    random: Random,
    layouts: Sequence[str],
    typefaces: Sequence[Family],
    grid: tuple[int, int],
    questions: int,
    kinds: Sequence[Kind] = KINDS,
) -> Example:
    """A page of one of the layouts and families, sized for a grid of (columns, rows) tiles.

    Fonts must have been fetched; raises ExportError otherwise.
    """
    family = random.choice(typefaces)
    layout = random.choice(layouts)
    width, height = (round(side * TILE * random.uniform(0.8, 1.0)) for side in grid)
    style = drawn_style(random, upright(family))
    scene = LAYOUTS[layout](random, style, width, height)
    picture, where = photograph(scene.page.image, random)
    asked = turns(scene, random, questions, kinds)
    return Example(picture, scene.page, where, layout, family.name, asked, scene.small)


def asked_example(
    random: Random,
    layouts: Sequence[str],
    typefaces: Sequence[Family],
    grid: tuple[int, int],
    questions: int,
    kinds: Sequence[Kind] = KINDS,
) -> Example:
    """The first that has a question: about some pages nothing unambiguous can be asked."""
    while True:
        made = example(random, layouts, typefaces, grid, questions, kinds)
        if made.turns:
            return made


def upright(family: Family) -> tuple[Path, ...]:
    """The family's files without its italics, unless it has nothing else."""
    files = font_files(family)
    kept = tuple(path for path in files if "Italic" not in path.stem)
    return kept or files


def trained_fonts() -> tuple[Family, ...]:
    """Those that training uses."""
    return families(held_out=False)
