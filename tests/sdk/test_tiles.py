from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from handlens.cli.tiles import GAP, write_tiles
from handlens_runtime.errors import OptionError
from handlens_runtime.manifest import ImageRule, Manifest


@pytest.fixture
def seeing(manifest: Manifest) -> Manifest:
    rule = ImageRule(
        tiling="relaxed", tile_size=32, max_tiles=4, tokens_per_tile=4, image_token="<image>", placeholder="<image>"
    )
    return manifest.model_copy(update={"image": rule})


def test_one_picture_below_the_other(seeing: Manifest, tmp_path: Path) -> None:
    pictures = [tmp_path / "wide.png", tmp_path / "square.png"]
    Image.new("RGB", (64, 32), "red").save(pictures[0])
    Image.new("RGB", (32, 32), "blue").save(pictures[1])
    write_tiles(seeing, pictures, tmp_path / "tiles.png")
    page = Image.open(tmp_path / "tiles.png")
    assert page.size == (64, 32 + GAP + 32)
    assert page.getpixel((20, 20)) == (255, 0, 0)
    assert page.getpixel((20, 32 + GAP + 20)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("images", "target", "says"),
    [
        ([], "t.png", "give one with --image"),
        (["a.jpg"], "t.pdf", "t.pdf does not end in .png, .jpg"),
        (["a.jpg"], "nodir/t.png", "there is no folder nodir; make it"),
    ],
)
def test_mistakes_are_named(seeing: Manifest, images: list[str], target: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        write_tiles(seeing, [Path(image) for image in images], Path(target))


def test_a_text_only_bundle_has_no_tiles(manifest: Manifest) -> None:
    with pytest.raises(OptionError, match="tiny reads text only"):
        write_tiles(manifest, [Path("a.jpg")], Path("t.png"))
