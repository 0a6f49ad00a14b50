"""What each layer kept of a picture, darkened where it kept nothing: for `handlens run --show-kept`."""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from handlens_runtime.errors import OptionError
from handlens_runtime.images.preprocess import Layout, lay_out
from handlens_runtime.manifest import ImageRule

COLUMNS = 6
"""Layers beside one another."""
WIDTH = 220
"""Pixels of one layer's panel."""
LABEL, GAP = 22, 8
DARK = 0.15
"""Brightness that is left of what was not kept."""


def draw_kept(image: Image.Image, rule: ImageRule, kept: NDArray[np.bool_]) -> Image.Image:
    """A panel a layer, of an upright RGB picture; `kept` (layers, its tokens) in the order in which they are encoded.

    The thumbnail, if any, stands at the right. Raises OptionError where a tile's tokens are no square, ImageError like
    `prepare`.
    """
    side = isqrt(rule.tokens_per_tile)
    if side * side != rule.tokens_per_tile:
        raise OptionError(
            f"--show-kept needs tokens that lie on a square, but a tile of this bundle has {rule.tokens_per_tile}."
        )
    layout = lay_out(image, rule)
    whole = _sheet(layout, rule)
    scale = WIDTH / whole.width
    height = round(whole.height * scale)
    bright = np.asarray(whole.resize((WIDTH, height), Image.Resampling.LANCZOS), np.float32)
    columns = min(COLUMNS, len(kept))
    rows = -(-len(kept) // columns)
    page = Image.new(
        "RGB", (columns * WIDTH + (columns - 1) * GAP, rows * (height + LABEL) + (rows - 1) * GAP), "white"
    )
    draw = ImageDraw.Draw(page)
    for layer, mask in enumerate(kept):
        left, top = layer % columns * (WIDTH + GAP), layer // columns * (height + LABEL + GAP)
        light = _light(layout, rule, mask.reshape(-1, side, side)).resize((WIDTH, height), Image.Resampling.NEAREST)
        panel = bright * (np.asarray(light, np.float32)[..., None] / 255)
        draw.text((left, top), f"layer {layer}: {mask.mean():.0%} kept", fill="black", font_size=LABEL * 2 // 3)
        page.paste(Image.fromarray(panel.astype(np.uint8)), (left, top + LABEL))
    return page


def _sheet(layout: Layout, rule: ImageRule) -> Image.Image:
    """The canvas, and the thumbnail beside it."""
    beside = 0 if layout.thumbnail is None else rule.tile_size
    sheet = Image.new("RGB", (layout.canvas.width + beside, layout.canvas.height), "white")
    sheet.paste(layout.canvas)
    if layout.thumbnail is not None:
        sheet.paste(layout.thumbnail, (layout.canvas.width, 0))
    return sheet


def _light(layout: Layout, rule: ImageRule, tiles: NDArray[np.bool_]) -> Image.Image:
    """Brightness of `_sheet`, a pixel a token; of each tile's tokens (side, side)."""
    side, grid = tiles.shape[1], layout.columns * layout.rows
    first = 1 if layout.thumbnail is not None and rule.thumbnail == "first" else 0
    beside = 0 if layout.thumbnail is None else side
    light = np.zeros((layout.rows * side, layout.columns * side + beside), np.uint8)
    for index in range(grid):
        top, left = index // layout.columns * side, index % layout.columns * side
        light[top : top + side, left : left + side] = _brightness(tiles[first + index])
    if layout.thumbnail is not None:
        light[:side, -side:] = _brightness(tiles[0 if first else grid])
    return Image.fromarray(light)


def _brightness(kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(kept, 255, round(255 * DARK)).astype(np.uint8)
