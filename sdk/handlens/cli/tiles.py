"""Pictures as the model sees them, written to an image file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handlens_runtime.errors import OptionError

if TYPE_CHECKING:
    from PIL import Image

    from handlens_runtime.engine import Engine
    from handlens_runtime.manifest import Manifest

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
GAP = 16
"""Pixels between one picture and the next below it."""


def write_tiles(manifest: Manifest, images: Sequence[Path], target: Path) -> None:
    """Write the tiles of all pictures, one picture below the other, to `target`. Raises OptionError, ImageError."""
    from handlens_runtime.images.decode import open_image
    from handlens_runtime.images.draw import draw_tiles

    rule = manifest.image
    if rule is None:
        raise OptionError(f"--show-tiles needs a bundle that reads pictures, but {manifest.name} reads text only.")
    if not images:
        raise OptionError("--show-tiles needs a picture; give one with --image.")
    check_target("--show-tiles", target)
    sheets = [draw_tiles(open_image(image, rule.max_pixels, rule.background), rule) for image in images]
    _page(sheets).save(target)


def write_kept(engine: Engine, images: Sequence[Path], target: Path) -> bool:
    """Write what the engine's layers kept of the pictures in its latest run; False where they kept all of the prompt.

    Raises OptionError, ImageError.
    """
    from handlens_runtime.images.decode import digest, open_image
    from handlens_runtime.images.draw_kept import draw_kept

    rule = engine.bundle.manifest.image
    assert rule is not None
    sheets = []
    for image in dict.fromkeys(images):
        opened = open_image(image, rule.max_pixels, rule.background)
        name = digest(opened)
        for kept in engine.kept:
            rows: dict[int, int] = {}  # of a picture that was given twice, the first time
            for index, key in enumerate(kept.keys):
                if isinstance(key, tuple) and key[0] == name:
                    rows.setdefault(key[1], index)
            if rows:
                sheets.append(draw_kept(opened, rule, kept.rows[:, list(rows.values())]))
    if sheets:
        _page(sheets).save(target)
    return bool(sheets)


def check_kept(manifest: Manifest, images: Sequence[Path], target: Path) -> None:
    """Refuse, before any work, what `write_kept` could not draw. Raises OptionError."""
    if manifest.sparsity is None or manifest.image is None:
        lacks = "keeps all of a prompt" if manifest.sparsity is None else "reads text only"
        raise OptionError(
            f"--show-kept needs a bundle that reads pictures, exported with --sparsity, but {manifest.name} {lacks}."
        )
    if not images:
        raise OptionError("--show-kept needs a picture; give one with --image.")
    check_target("--show-kept", target)


def _page(sheets: Sequence[Image.Image]) -> Image.Image:
    """One below the other."""
    from PIL import Image

    height = sum(sheet.height for sheet in sheets) + GAP * (len(sheets) - 1)
    page = Image.new("RGB", (max(sheet.width for sheet in sheets), height), "white")
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height + GAP
    return page


def check_target(option: str, target: Path) -> None:
    """Refuse a place for a picture before any work. Raises OptionError, which names the option."""
    if target.suffix.lower() not in ENDINGS:
        raise OptionError(f"{option} {target} does not end in {', '.join(ENDINGS)}; name it as in picture.png.")
    if not target.parent.is_dir():
        raise OptionError(f"{option} {target}: there is no folder {target.parent}; make it, or name another.")
