"""The picture of a golden case: drawn by a formula, so that no bundle has to carry one."""

from __future__ import annotations

import numpy as np
from PIL import Image


def pattern() -> Image.Image:
    """300 x 200 RGB, in whole numbers only so that any language draws the same pixels.

    The pixel in column x and row y, both from 0, with // the quotient without its remainder:

        red = 255 * x // 299    green = 255 * y // 199    blue = 255 * (x + y) // 498

    and over it, in this order, filled rectangles (first column, first row, columns, rows, colour):

        (30, 30, 80, 60, 220 30 30)    (150, 50, 100, 100, 250 250 250)    (175, 75, 50, 50, 20 20 120)
    """
    x, y = np.arange(300)[None, :], np.arange(200)[:, None]
    planes = np.broadcast_arrays(255 * x // 299, 255 * y // 199, 255 * (x + y) // 498)
    pixels = np.stack(planes, axis=-1).astype(np.uint8)  # (200, 300, 3)
    pixels[30:90, 30:110] = (220, 30, 30)
    pixels[50:150, 150:250] = (250, 250, 250)
    pixels[75:125, 175:225] = (20, 20, 120)
    return Image.fromarray(pixels)
