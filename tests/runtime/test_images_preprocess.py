"""Tiles against transformers' Pillow image processors, on photographs and awkward sizes, to one grey level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from handlens_runtime.errors import ImageError
from handlens_runtime.images.decode import open_image
from handlens_runtime.images.preprocess import Tiles, prepare
from handlens_runtime.images.tiling import grids_up_to
from handlens_runtime.manifest import ImageRule

PHOTOGRAPHS = sorted((Path(__file__).parents[2] / "assets" / "photographs").glob("*.jpg"))
AWKWARD = [(336, 225), (225, 336), (1, 1), (10_000, 10), (10, 10_000), (17, 2000), (384, 384), (385, 383)]
SLIP = 1.001
"""One grey level, with room for float rounding."""


def _rule(tiling: str, tile: int, **fields: object) -> ImageRule:
    fixed = {"max_tiles": 16, "tokens_per_tile": 4, "image_token": "<i>", "placeholder": "<i>"}
    return ImageRule.model_validate({**fixed, "tiling": tiling, "tile_size": tile, **fields})


def _pictures() -> dict[str, Image.Image]:
    pictures = {path.stem: open_image(path) for path in PHOTOGRAPHS}
    coffee = pictures["coffee"]
    return pictures | {f"{width}x{height}": coffee.resize((width, height)) for width, height in AWKWARD}


PICTURES = _pictures()


def _check(tiles: Tiles, expected: np.ndarray, rule: ImageRule) -> None:
    assert tiles.pixels.dtype == np.float32
    assert tiles.pixels.shape == expected.shape
    grey_level = rule.rescale / min(rule.std)
    assert np.abs(tiles.pixels - expected).max() <= SLIP * grey_level


def test_there_are_five_photographs() -> None:
    assert len(PHOTOGRAPHS) == 5
    assert sum(path.stat().st_size for path in PHOTOGRAPHS) < 1_000_000


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("processor_class", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
def test_idefics3(processor_class: type, name: str) -> None:
    rule = _rule("idefics3", 96, longest_edge=4 * 96, thumbnail="last", resampling="lanczos")
    processor = processor_class(size={"longest_edge": 4 * 96}, max_image_size={"longest_edge": 96})
    expected = processor(PICTURES[name], return_row_col_info=True)
    tiles = prepare(PICTURES[name], rule)
    _check(tiles, np.asarray(expected["pixel_values"])[0], rule)
    assert (tiles.rows, tiles.columns) == (expected["rows"][0][0], expected["cols"][0][0])


@pytest.mark.parametrize(
    ("tile", "longest_edge", "name"),
    [
        (364, 1456, "rocket"),  # Idefics3's own
        (512, 2048, "chelsea"),  # SmolVLM's own
        (96, 250, "coffee"),  # no multiple of the tile
        (96, 250, "17x2000"),
        (128, 128, "hubble_deep_field"),  # fits one tile: no split, no thumbnail
        (128, 40, "astronaut"),
    ],
)
def test_idefics3_sizes(tile: int, longest_edge: int, name: str) -> None:
    rule = _rule(
        "idefics3", tile, longest_edge=longest_edge, thumbnail="last", resampling="lanczos",
        mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28),
    )  # fmt: skip
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": longest_edge},
        max_image_size={"longest_edge": tile},
        image_mean=rule.mean,
        image_std=rule.std,
    )
    expected = processor(PICTURES[name], return_row_col_info=True)
    tiles = prepare(PICTURES[name], rule)
    _check(tiles, np.asarray(expected["pixel_values"])[0], rule)
    assert (tiles.rows, tiles.columns) == (expected["rows"][0][0] or 1, expected["cols"][0][0] or 1)


@pytest.mark.parametrize("name", ["rocket", "17x2000", "1x1"])
def test_idefics3_without_image_splitting(name: str) -> None:
    rule = _rule("idefics3", 96, longest_edge=384, thumbnail="last", resampling="lanczos", max_tiles=1)
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": 384}, max_image_size={"longest_edge": 96}, do_image_splitting=False
    )
    _check(prepare(PICTURES[name], rule), np.asarray(processor(PICTURES[name])["pixel_values"])[0], rule)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(("tile", "resampling"), [(224, "bicubic"), (96, "bilinear"), (96, "nearest")])
def test_single_equals_siglip_which_paligemma_uses(name: str, tile: int, resampling: str) -> None:
    rule = _rule("single", tile, resampling=resampling, max_tiles=1, std=(0.5, 0.25, 0.5))
    processor = SiglipImageProcessorPil(
        size={"height": tile, "width": tile},
        resample={"bicubic": 3, "bilinear": 2, "nearest": 0}[resampling],
        image_std=rule.std,
    )
    tiles = prepare(PICTURES[name], rule)
    _check(tiles, np.asarray(processor(PICTURES[name])["pixel_values"]), rule)
    assert (tiles.columns, tiles.rows, len(tiles.pixels)) == (1, 1, 1)


def test_transparency_on_white_equals_transformers() -> None:
    image = PICTURES["chelsea"].copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    rule = _rule("single", 96, max_tiles=1)
    processor = SiglipImageProcessorPil(size={"height": 96, "width": 96})
    opened = open_image(image, background=(255, 255, 255))
    _check(prepare(opened, rule), np.asarray(processor(image)["pixel_values"]), rule)


# transformers finds no grid for 10000x10: no canvas shows a whole pixel of its height.
@pytest.mark.parametrize("name", [name for name in PICTURES if "10000" not in name])
def test_largest_effective_equals_llava_next(name: str) -> None:
    grids = tuple(grid for grid in grids_up_to(4, 4) if grid != (1, 1))  # with 1x1, LLaVA-NeXT shows the picture twice
    rule = _rule("largest-effective", 96, grids=grids, thumbnail="first")
    processor = LlavaNextImageProcessorPil(
        size={"height": 96, "width": 96},
        crop_size={"height": 96, "width": 96},
        image_grid_pinpoints=[[rows * 96, columns * 96] for columns, rows in grids],
        image_mean=rule.mean,
        image_std=rule.std,
    )
    _check(prepare(PICTURES[name], rule), np.asarray(processor(PICTURES[name])["pixel_values"])[0], rule)


@pytest.mark.parametrize("name", PICTURES)
def test_closest_ratio_equals_internvl(name: str) -> None:
    rule = _rule("closest-ratio", 96, max_tiles=6, thumbnail="last")
    processor = GotOcr2ImageProcessorPil(
        size={"height": 96, "width": 96}, crop_to_patches=True, min_patches=1, max_patches=6,
        image_mean=rule.mean, image_std=rule.std,
    )  # fmt: skip
    _check(prepare(PICTURES[name], rule), np.asarray(processor(PICTURES[name])["pixel_values"]), rule)


def test_relaxed_keeps_the_shape_and_pads_with_the_background() -> None:
    rule = _rule("relaxed", 64, grids=grids_up_to(4, 4), thumbnail="first", background=(255, 0, 0))
    tiles = prepare(Image.new("RGB", (240, 120), (0, 0, 255)), rule)
    assert (tiles.columns, tiles.rows, len(tiles.pixels)) == (4, 2, 9)
    canvas = tiles.pixels[1:].reshape(2, 4, 3, 64, 64).transpose(2, 0, 3, 1, 4).reshape(3, 128, 256)
    blue = canvas[2] > 0
    assert blue.all()  # 240x120 is exactly 2:1

    tall = prepare(Image.new("RGB", (50, 100), (0, 0, 255)), rule)
    assert (tall.columns, tall.rows) == (1, 2)
    wide = prepare(Image.new("RGB", (60, 40), (0, 0, 255)), rule)
    assert (wide.columns, wide.rows, len(wide.pixels)) == (1, 1, 1)
    np.testing.assert_array_equal(wide.pixels[0, :, 0, 0], [1, -1, -1])  # red above
    np.testing.assert_array_equal(wide.pixels[0, :, 63, 63], [1, -1, -1])  # red below
    np.testing.assert_array_equal(wide.pixels[0, :, 32, 0], [-1, -1, 1])  # blue from edge to edge
    rows = (wide.pixels[0, 2, :, 32] > 0).nonzero()[0]
    assert (rows[0], rows[-1]) == (10, 52)  # 43 rows, centred


@pytest.mark.parametrize("tiling", ["relaxed", "largest-effective", "closest-ratio", "idefics3", "single"])
@pytest.mark.parametrize("size", AWKWARD)
def test_awkward_sizes_give_whole_tiles_under_every_rule(tiling: str, size: tuple[int, int]) -> None:
    rule = _rule(tiling, 48, longest_edge=192, thumbnail="first")
    tiles = prepare(Image.new("RGB", size, (128, 128, 128)), rule)
    thumbnails = 0 if (tiles.columns, tiles.rows) == (1, 1) else 1
    assert tiles.pixels.shape == (tiles.columns * tiles.rows + thumbnails, 3, 48, 48)
    assert np.isfinite(tiles.pixels).all()


def test_order_of_tiles_is_row_by_row_with_the_thumbnail_where_the_rule_says() -> None:
    image = Image.new("RGB", (96, 64))
    for i in range(6):
        left, top = i % 3 * 32, i // 3 * 32
        image.paste((40 * i, 0, 0), (left, top, left + 32, top + 32))
    for thumbnail, expected in (("none", []), ("first", [0]), ("last", [6])):
        rule = _rule("closest-ratio", 32, max_tiles=6, thumbnail=thumbnail, mean=(0, 0, 0), std=(1, 1, 1))
        pixels = prepare(image, rule).pixels
        flat = [i for i, tile in enumerate(pixels) if np.ptp(tile[0]) > 0]
        assert flat == expected
        grid = [tile[0, 0, 0] for i, tile in enumerate(pixels) if i not in expected]
        np.testing.assert_allclose(grid, [40 * i / 255 for i in range(6)], rtol=1e-6)


def test_absurd_memory_is_refused_in_one_sentence() -> None:
    sliver = Image.new("RGB", (1, 4_000_000))
    for tiling in ("single", "closest-ratio"):
        with pytest.raises(ImageError, match=r"1 x 4,000,000 pixels would take \d+\.\d GB"):
            prepare(sliver, _rule(tiling, 384))
    with pytest.raises(ImageError, match="GB to cut into tiles"):
        prepare(Image.new("RGB", (400, 400)), _rule("closest-ratio", 4096, max_tiles=16, grids=((4, 4),)))
