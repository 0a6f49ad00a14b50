"""The chosen tiles drawn over the picture, the thumbnail beside it: for `handlens run --show-tiles`."""

from __future__ import annotations

from PIL import Image, ImageDraw

from handlens_runtime.images.preprocess import Layout, lay_out
from handlens_runtime.manifest import ImageRule

_LINE = (255, 0, 128)
_PAPER = (255, 255, 255)


def draw_tiles(image: Image.Image, rule: ImageRule) -> Image.Image:
    """The canvas of an upright RGB picture as the vision encoder sees it, with the tiles' borders and numbers.

    Tiles are numbered in the order in which they are encoded; the thumbnail, if any, stands at the right with its own
    number. Raises ImageError like `prepare`.
    """
    layout = lay_out(image, rule)
    tile = rule.tile_size
    gap = max(tile // 24, 4)
    beside = 0 if layout.thumbnail is None else gap + tile
    sheet = Image.new("RGB", (layout.canvas.width + beside, layout.canvas.height), _PAPER)
    sheet.paste(layout.canvas)
    first = 2 if layout.thumbnail is not None and rule.thumbnail == "first" else 1
    for i in range(layout.columns * layout.rows):
        _frame(sheet, i % layout.columns * tile, i // layout.columns * tile, tile, first + i)
    if layout.thumbnail is not None:
        left = layout.canvas.width + gap
        sheet.paste(layout.thumbnail, (left, 0))
        _frame(sheet, left, 0, tile, _thumbnail_number(layout, rule))
    return sheet


def _thumbnail_number(layout: Layout, rule: ImageRule) -> int:
    return 1 if rule.thumbnail == "first" else layout.columns * layout.rows + 1


def _frame(sheet: Image.Image, left: int, top: int, tile: int, number: int) -> None:
    draw = ImageDraw.Draw(sheet)
    width = max(tile // 128, 1)
    draw.rectangle((left, top, left + tile - 1, top + tile - 1), outline=_LINE, width=width)
    size = max(tile // 12, 8)
    corner = (left + 2 * width, top + 2 * width)
    box = draw.textbbox(corner, str(number), font_size=size)
    draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=_LINE)
    draw.text(corner, str(number), fill=_PAPER, font_size=size)
