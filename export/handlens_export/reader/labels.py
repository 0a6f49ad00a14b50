"""What stands under each patch of the encoder, known by construction: the dense supervision of training.

A patch's label is the characters whose middle lies in it, left to right, the shape that covers its middle, and the
colour of either. Text too small to read after the resize, as in a thumbnail, is UNREADABLE rather than guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from handlens_export.reader.camera import Affine
from handlens_export.reader.page import Colour, Page, ShapeKind

SLOTS = 4
"""Characters told apart within one patch; a fifth, which only letters under 4 pixels wide need, is dropped."""
EMPTY, UNREADABLE = 0, 1
CHARACTERS = "".join(chr(code) for code in range(32, 127))
CHARACTER_CLASSES = 2 + len(CHARACTERS)
SHAPES: tuple[ShapeKind, ...] = get_args(ShapeKind)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPE_CLASSES = 1 + len(SHAPES)
COLOUR_CLASSES = 1 + len(COLOURS)
LEAST_HEIGHT = 7.0
"""Of a line's box in the tile's pixels, under which it counts as unreadable."""


@dataclass(frozen=True)
class Labels:
    """For tiles of `grid` x `grid` patches."""

    characters: NDArray[np.uint8]
    """(tiles, grid * grid, SLOTS), classes below CHARACTER_CLASSES."""
    shapes: NDArray[np.uint8]
    """(tiles, grid * grid)."""
    colours: NDArray[np.uint8]
    """(tiles, grid * grid)."""


@dataclass(frozen=True)
class Canvas:
    """How a picture was laid out: `columns` x `rows` tiles of `tile` pixels, the thumbnail first where there is one."""

    picture: tuple[int, int]
    columns: int
    rows: int
    tile: int
    patch: int
    thumbnail: bool

    @property
    def grid(self) -> int:
        """Patches along a tile's side."""
        return self.tile // self.patch

    @property
    def fit(self) -> tuple[float, tuple[float, float]]:
        """How much the picture was resized, and where it begins in the middle of the tiles."""
        width, height = self.columns * self.tile, self.rows * self.tile
        scale = min(width / self.picture[0], height / self.picture[1])
        return scale, ((width - self.picture[0] * scale) / 2, (height - self.picture[1] * scale) / 2)


def labels(page: Page, where: Affine, canvas: Canvas) -> Labels:
    """Labels of every tile, in the order in which the encoder gets them."""
    scale, offset = canvas.fit
    across, down = canvas.columns * canvas.grid, canvas.rows * canvas.grid
    whole = _under(page, where, (scale, scale), offset, (across, down), canvas.patch)
    tiled = tuple(_cut(layer, canvas) for layer in whole)
    if canvas.thumbnail:
        scales = canvas.tile / canvas.picture[0], canvas.tile / canvas.picture[1]
        small = _under(page, where, scales, (0, 0), (canvas.grid, canvas.grid), canvas.patch)
        tiled = tuple(
            np.concatenate((one.reshape(1, -1, *one.shape[2:]), many)) for one, many in zip(small, tiled, strict=True)
        )
    return Labels(*tiled)


def _under(
    page: Page,
    where: Affine,
    scale: tuple[float, float],
    offset: tuple[float, float],
    patches: tuple[int, int],
    patch: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Characters (down, across, SLOTS), shapes and colours (down, across) of a canvas."""
    across, down = patches
    characters = np.zeros((down, across, SLOTS), np.uint8)
    shapes = np.zeros((down, across), np.uint8)
    colours = np.zeros((down, across), np.uint8)
    corners = np.stack(np.meshgrid(np.arange(across), np.arange(down)), -1).reshape(-1, 2)
    middles = (corners.astype(np.float64) + 0.5) * patch
    back = _inverse(where, scale, offset, middles)
    for shape in page.shapes:
        box = shape.box
        inside = (back[:, 0] >= box[0]) & (back[:, 0] < box[2]) & (back[:, 1] >= box[1]) & (back[:, 1] < box[3])
        shapes.reshape(-1)[inside] = 1 + SHAPES.index(shape.kind)
        colours.reshape(-1)[inside] = 1 + COLOURS.index(shape.colour)
    for line in sorted(page.lines, key=lambda line: line.box[1]):
        readable = (line.box[3] - line.box[1]) * where.scale * min(scale) >= _least(line.text)
        points = where(np.array([(x, line.y) for x in line.centres])) * scale + offset
        places = np.floor(points / patch).astype(int)
        for character, (x, y) in zip(line.text, places, strict=True):
            if not (0 <= x < across and 0 <= y < down):
                continue
            colours[y, x] = 1 + COLOURS.index(line.colour)
            slots = characters[y, x]
            if not readable:
                slots[0] = UNREADABLE
                continue
            free = int((slots != EMPTY).sum())
            if free < SLOTS:
                slots[free] = 2 + CHARACTERS.index(character)
    return characters, shapes, colours


def _least(text: str) -> float:
    """A line of small letters alone is lower than one with capitals or digits."""
    tall = any(character.isupper() or character.isdigit() or character in "bdfhklt" for character in text)
    return LEAST_HEIGHT if tall else LEAST_HEIGHT * 0.7


def _inverse(
    where: Affine, scale: tuple[float, float], offset: tuple[float, float], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    matrix = np.array(((where.a, where.b), (where.d, where.e)))
    picture = (points - offset) / scale
    back: NDArray[np.float64] = (picture - (where.c, where.f)) @ np.linalg.inv(matrix).T
    return back


def _cut(layer: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """(rows * grid, columns * grid, ...) -> (tiles, grid * grid, ...), row by row."""
    rest = layer.shape[2:]
    grid = canvas.grid
    parts = layer.reshape(canvas.rows, grid, canvas.columns, grid, *rest).swapaxes(1, 2)
    return parts.reshape(canvas.rows * canvas.columns, grid * grid, *rest)
