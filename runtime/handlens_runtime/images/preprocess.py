"""A picture to normalized tiles: what the vision encoder takes.

picture ─grid─▶ canvas (columns x rows tiles) ─cut, row by row─▶ tiles ─┐
   └──────────────────resize to one tile──────────────▶ thumbnail ──────┴─▶ normalize ─▶ (n, 3, tile, tile)

How the picture fills its canvas depends on the tiling rule. `relaxed` and `largest-effective` keep its shape and
centre it, as LLaVA-NeXT does (BlueLM-V-3B does not describe this step); the others stretch it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlens_runtime.errors import ImageError
from handlens_runtime.images.tiling import choose_grid, idefics3_resized
from handlens_runtime.manifest import ImageRule

MAX_WORKING_BYTES = 1 << 30
"""A picture that needs more than this, for its tiles or for one resize, is refused."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SUPPORT = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 3}
"""Half width of Pillow's filters in source pixels, before it is scaled."""


@dataclass(frozen=True)
class Tiles:
    """The vision encoder's input for one picture."""

    pixels: NDArray[np.float32]
    """(n, 3, tile_size, tile_size), normalized; grid tiles row by row, the thumbnail first or last as the rule says."""
    columns: int
    rows: int


@dataclass(frozen=True)
class Layout:
    """A picture on its canvas, in grey levels, before it is cut."""

    canvas: Image.Image
    """RGB, columns * tile_size wide and rows * tile_size high."""
    thumbnail: Image.Image | None
    """RGB, one tile; None where the rule has none or the grid is 1x1."""
    columns: int
    rows: int


def prepare(image: Image.Image, rule: ImageRule) -> Tiles:
    """Tiles of an upright RGB picture, as `open_image` gives it.

    Equal to transformers' Pillow processors for SigLIP and PaliGemma (`single`), Idefics3 and SmolVLM (`idefics3`),
    LLaVA-NeXT (`largest-effective`) and InternVL (`closest-ratio`). Raises ImageError if this would take absurd memory
    or more tiles than the rule allows.
    """
    layout = lay_out(image, rule)
    return Tiles(_normalize(cut(layout, rule), rule), layout.columns, layout.rows)


def lay_out(image: Image.Image, rule: ImageRule) -> Layout:
    """Choose the grid and fill the canvas; `prepare` cuts it, `draw_tiles` shows it. Raises like `prepare`."""
    assert image.mode == "RGB", image.mode
    columns, rows = choose_grid(image.width, image.height, rule)
    _check_memory(4 * 3 * rule.tile_size**2 * (columns * rows + 1), image)
    size = columns * rule.tile_size, rows * rule.tile_size
    match rule.tiling:
        case "relaxed" | "largest-effective":
            canvas = _centre(_resize(image, _fitting(image.size, size), rule), size, rule)
        case "idefics3":
            resized = _resize(image, idefics3_resized(image.width, image.height, rule.longest_edge), rule)
            # Idefics3 makes its global view from the canvas, not from the picture.
            image = canvas = _resize(resized, size, rule)
        case "single" | "closest-ratio":
            canvas = _resize(image, size, rule)
    alone = rule.thumbnail == "none" or (columns, rows) == (1, 1)
    thumbnail = None if alone else _resize(image, (rule.tile_size, rule.tile_size), rule)
    return Layout(canvas, thumbnail, columns, rows)


def cut(layout: Layout, rule: ImageRule) -> NDArray[np.uint8]:
    """Grey levels (n, tile, tile, 3) of the grid's tiles, row by row, and of the thumbnail where there is one."""
    tile = rule.tile_size
    levels = np.asarray(layout.canvas).reshape(layout.rows, tile, layout.columns, tile, 3)
    tiles = levels.transpose(0, 2, 1, 3, 4).reshape(-1, tile, tile, 3)
    if layout.thumbnail is None:
        return tiles
    whole = np.asarray(layout.thumbnail)[None]
    return np.concatenate([whole, tiles] if rule.thumbnail == "first" else [tiles, whole])


def _fitting(picture: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the picture's shape that fits the canvas, rounded up as LLaVA-NeXT does."""
    scale_width, scale_height = canvas[0] / picture[0], canvas[1] / picture[1]
    if scale_width < scale_height:
        return canvas[0], min(math.ceil(picture[1] * scale_width), canvas[1])
    return min(math.ceil(picture[0] * scale_height), canvas[0]), canvas[1]


def _centre(image: Image.Image, size: tuple[int, int], rule: ImageRule) -> Image.Image:
    canvas = Image.new("RGB", size, rule.background)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def _resize(image: Image.Image, size: tuple[int, int], rule: ImageRule) -> Image.Image:
    """Resize, after a look at Pillow's own needs: its first pass is `size[0]` wide and as high as the source."""
    support = _SUPPORT[rule.resampling]
    first_pass = 4 * size[0] * image.height
    weights = sum(
        8 * new * (2 * math.ceil(support * max(old / new, 1)) + 1) for old, new in zip(image.size, size, strict=True)
    )
    _check_memory(first_pass + weights, image)
    return image.resize(size, _FILTERS[rule.resampling])


def _check_memory(needed: int, image: Image.Image) -> None:
    if needed > MAX_WORKING_BYTES:
        raise ImageError(
            f"A picture of {image.width:,} x {image.height:,} pixels would take {needed / 1e9:.1f} GB to cut into "
            "tiles; crop it to a more usual shape first."
        )


def _normalize(levels: NDArray[np.uint8], rule: ImageRule) -> NDArray[np.float32]:
    """(n, tile, tile, 3) grey levels -> (n, 3, tile, tile) floats, through a table of 256 values a channel."""
    pixels = np.empty((len(levels), 3, *levels.shape[1:3]), np.float32)
    for channel, (mean, std) in enumerate(zip(rule.mean, rule.std, strict=True)):
        table = ((np.arange(256) * rule.rescale - mean) / std).astype(np.float32)
        pixels[:, channel] = table[levels[..., channel]]
    return pixels
