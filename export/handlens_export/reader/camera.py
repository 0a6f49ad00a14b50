"""From a drawn page to what a camera or a scanner would give: a little turned, uneven, blurred, noisy, compressed."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

MOST_DEGREES = 2.0
CLEAN = 0.5
"""Share of pages that stay as drawn, as a screenshot would."""


@dataclass(frozen=True)
class Affine:
    """(x, y) -> (a x + b y + c, d x + e y + f), from the page's pixels to the picture's."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) points."""
        matrix = np.array(((self.a, self.b), (self.d, self.e)))
        moved: NDArray[np.float64] = points @ matrix.T + (self.c, self.f)
        return moved

    @property
    def scale(self) -> float:
        """How much larger lengths become."""
        return math.hypot(self.a, self.d)


SAME = Affine(1, 0, 0, 0, 1, 0)


def photograph(page: Image.Image, random: Random) -> tuple[Image.Image, Affine]:
    """A picture of the page, of the same size, and where the page's points lie in it."""
    if random.random() < CLEAN:
        return page, SAME
    picture, where = _turned(page, random) if random.random() < 0.5 else (page, SAME)
    levels = np.asarray(picture, dtype=np.float32)
    levels = _uneven(levels, random) if random.random() < 0.5 else levels
    levels = _noisy(levels, random) if random.random() < 0.5 else levels
    picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if random.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.7)))
    return (_compressed(picture, random) if random.random() < 0.6 else picture), where


def _turned(page: Image.Image, random: Random) -> tuple[Image.Image, Affine]:
    """Turned about the middle; the corners that come into view take the page's own corner colour."""
    angle = math.radians(random.uniform(-MOST_DEGREES, MOST_DEGREES))
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = page.width / 2, page.height / 2
    forward = Affine(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    backward = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    corner = page.getpixel((0, 0))
    turned = page.transform(page.size, Image.Transform.AFFINE, backward, Image.Resampling.BILINEAR, fillcolor=corner)
    return turned, forward


def _uneven(levels: NDArray[np.float32], random: Random) -> NDArray[np.float32]:
    """Light that falls off towards one side."""
    height, width = levels.shape[:2]
    across = np.linspace(random.uniform(-0.15, 0.0), random.uniform(-0.15, 0.0), width, dtype=np.float32)
    down = np.linspace(random.uniform(-0.15, 0.0), random.uniform(-0.15, 0.0), height, dtype=np.float32)
    out: NDArray[np.float32] = levels * (1 + across[None, :, None] + down[:, None, None])
    return out


def _noisy(levels: NDArray[np.float32], random: Random) -> NDArray[np.float32]:
    stream = np.random.default_rng(random.getrandbits(32))
    grain = stream.standard_normal((*levels.shape[:2], 1), dtype=np.float32) * random.uniform(1, 9)
    out: NDArray[np.float32] = levels + grain
    return out


def _compressed(picture: Image.Image, random: Random) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=random.randint(55, 95))
    return Image.open(buffer).convert("RGB")
