"""Any Pillow mode to 8-bit RGB, and nothing about files.

grey of 16 or 32 bits, float ─scale─▶ 8-bit grey ─┐
alpha in any mode ─composite on background──────────┼─▶ RGB
palette, 1 bit, CMYK, YCbCr, … ─Pillow──────────────┘
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]


def to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """A new RGB image of the same size; transparent pixels show `background`.

    Deep grey is scaled, never clipped, so that a 16-bit scan does not come out white. Raises ValueError for a mode
    that Pillow cannot convert (LAB).
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode, image.mode)
        opaque = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(opaque, image.convert(straight).convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey levels (height, width) of 16 or 32 bits or float, to 0 … 255.

    16-bit levels have a known white, 65,535. The others have none, so the smallest usual white that holds all levels
    is taken: 1 (float only), 255, 65,535; levels outside all of these are stretched from darkest to brightest.
    """
    if levels.dtype.itemsize == 2:
        return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = levels.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(levels.shape, np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    whites = (1, 255, 65_535) if levels.dtype.kind == "f" else (255, 65_535)
    black, white = next(((0.0, float(white)) for white in whites if low >= 0 and high <= white), (low, high))
    gain = 255 / (white - black)
    scaled = np.where(finite, values, np.float32(low)) * np.float32(gain) - np.float32(black * gain)
    eight_bit: NDArray[np.uint8] = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return eight_bit
