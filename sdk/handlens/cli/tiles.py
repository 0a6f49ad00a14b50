"""A picture as the model sees it: its tiles with gaps between them, the thumbnail at the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from handlens_runtime.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from handlens_runtime.images.preprocess import Tiles
    from numpy.typing import NDArray
    from PIL import Image

    from handlens_runtime.bundle import Bundle
    from handlens_runtime.manifest import ImageRule

GAP = 8
"""Pixels between tiles."""
GAP_COLOUR = (255, 0, 128)


def draw(bundle: Bundle, images: tuple[Path, ...], target: Path) -> None:
    """Write the tiles of all pictures, one picture below the other, to the image file `target`."""
    from handlens_runtime.images.decode import open_image
    from handlens_runtime.images.preprocess import prepare
    from PIL import Image

    rule = bundle.manifest.image
    if rule is None:
        raise OptionError(
            f"--show-tiles needs a bundle that reads pictures, and {bundle.manifest.name} reads text only."
        )
    if not images:
        raise OptionError("--show-tiles needs a picture; give one with --image.")
    if target.suffix.lower() not in Image.registered_extensions():
        raise OptionError(f"--show-tiles {target} has no ending of an image file; name it as in tiles.png.")
    sheets = [_sheet(prepare(open_image(image, rule.max_pixels), rule), rule) for image in images]
    page = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height + GAP for sheet in sheets) - GAP))
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height + GAP
    page.save(target)


def _sheet(tiles: Tiles, rule: ImageRule) -> Image.Image:
    from PIL import Image

    pictures = [Image.fromarray(array) for array in _grey_levels(tiles, rule)]
    cells = tiles.columns * tiles.rows
    thumbnail = len(pictures) > cells
    grid = pictures[1:] if thumbnail and rule.thumbnail == "first" else pictures[:cells]
    step = rule.tile_size + GAP
    sheet = Image.new("RGB", ((tiles.columns + thumbnail) * step - GAP, tiles.rows * step - GAP), GAP_COLOUR)
    for i, picture in enumerate(grid):
        sheet.paste(picture, (i % tiles.columns * step, i // tiles.columns * step))
    if thumbnail:
        sheet.paste(pictures[0 if rule.thumbnail == "first" else -1], (tiles.columns * step, 0))
    return sheet


def _grey_levels(tiles: Tiles, rule: ImageRule) -> NDArray[np.uint8]:
    """(n, 3, s, s) normalized -> (n, s, s, 3) in grey levels."""
    import numpy as np

    mean, std = (np.array(values, np.float32)[:, None, None] for values in (rule.mean, rule.std))
    levels = (tiles.pixels * std + mean) / rule.rescale
    return np.ascontiguousarray(levels.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
