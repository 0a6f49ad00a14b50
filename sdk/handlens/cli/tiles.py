"""Pictures as the model sees them, written to an image file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handlens_runtime.errors import OptionError

if TYPE_CHECKING:
    from handlens_runtime.manifest import Manifest

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
GAP = 16
"""Pixels between one picture and the next below it."""


def write_tiles(manifest: Manifest, images: Sequence[Path], target: Path) -> None:
    """Write the tiles of all pictures, one picture below the other, to `target`. Raises OptionError, ImageError."""
    from PIL import Image

    from handlens_runtime.images.decode import open_image
    from handlens_runtime.images.draw import draw_tiles

    rule = manifest.image
    if rule is None:
        raise OptionError(f"--show-tiles needs a bundle that reads pictures, but {manifest.name} reads text only.")
    if not images:
        raise OptionError("--show-tiles needs a picture; give one with --image.")
    check_target("--show-tiles", target)
    sheets = [draw_tiles(open_image(image, rule.max_pixels, rule.background), rule) for image in images]
    page = Image.new(
        "RGB",
        (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets) + GAP * (len(sheets) - 1)),
        "white",
    )
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height + GAP
    page.save(target)


def check_target(option: str, target: Path) -> None:
    """Refuse a place for a picture before any work. Raises OptionError, which names the option."""
    if target.suffix.lower() not in ENDINGS:
        raise OptionError(f"{option} {target} does not end in {', '.join(ENDINGS)}; name it as in picture.png.")
    if not target.parent.is_dir():
        raise OptionError(f"{option} {target}: there is no folder {target.parent}; make it, or name another.")
