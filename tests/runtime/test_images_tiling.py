"""Grids against the published examples, naive references and transformers' own choices."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transformers import image_processing_backends
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from handlens_runtime.errors import ImageError, OptionError
from handlens_runtime.images.tiling import (
    Grid,
    choose_grid,
    closest_ratio,
    grids_of_at_most,
    grids_up_to,
    idefics3_resized,
    largest_effective,
    relaxed,
)
from handlens_runtime.manifest import ImageRule

TILE = 384
GRIDS_3 = grids_up_to(3, 3)
GRIDS_4 = grids_up_to(4, 4)
AWKWARD = [(1, 1), (10_000, 10), (10, 10_000), (336, 225), (17, 2000), (100_000, 3), (384, 384), (4096, 4096)]


def _rule(tiling: str, **fields: object) -> ImageRule:
    fixed = {"tile_size": TILE, "max_tiles": 16, "tokens_per_tile": 196, "image_token": "<i>", "placeholder": "<i>"}
    return ImageRule.model_validate({**fixed, "tiling": tiling, **fields})


def _sizes(count: int) -> list[tuple[int, int]]:
    rng = random.Random(7)
    return AWKWARD + [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(count)]


# BlueLM-V-3B, section 3.2 and appendix 7: the examples with which the paper argues.
@pytest.mark.parametrize(
    ("size", "grid"), [((394, 390), (1, 1)), ((380, 76), (1, 1)), ((380, 393), (1, 1)), ((500, 102), (2, 1))]
)
def test_relaxed_published_examples(size: tuple[int, int], grid: Grid) -> None:
    assert relaxed(*size, TILE, GRIDS_3, 0.1) == grid


@pytest.mark.parametrize(("size", "grid"), [((394, 390), (2, 2)), ((380, 393), (1, 2))])
def test_largest_effective_published_examples(size: tuple[int, int], grid: Grid) -> None:
    assert largest_effective(*size, TILE, GRIDS_3) == grid


@pytest.mark.parametrize("size", [(380, 76), (500, 102)])
def test_closest_ratio_published_examples(size: tuple[int, int]) -> None:
    assert closest_ratio(*size, TILE, grids_of_at_most(6)) == (5, 1)


@pytest.mark.parametrize("size", [(768, 1536), (1080, 2400)])
def test_phone_screens_take_2_by_4_only_where_the_grids_reach_4(size: tuple[int, int]) -> None:
    assert relaxed(*size, TILE, GRIDS_3, 0.1) == (2, 3)
    assert relaxed(*size, TILE, GRIDS_4, 0.1) == (2, 4)


def _relaxed_as_printed(width: int, height: int, grids: list[Grid], alpha: float) -> Grid | None:
    """Algorithm 1, line by line."""
    re_max, rw_min, best = 0, float("inf"), None
    for m, n in grids:
        scale = min(TILE * m / width, TILE * n / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        wasted = TILE * m * TILE * n - effective
        if (effective - re_max) > alpha * re_max or ((re_max - effective) < alpha * re_max and wasted < rw_min):
            re_max, rw_min, best = effective, wasted, (m, n)
    return best


def test_relaxed_equals_the_algorithm_as_printed() -> None:
    descending = [(m, n) for m in (4, 3, 2, 1) for n in (4, 3, 2, 1)]
    for alpha in (0.0, 0.1, 0.5):
        for size in _sizes(300):
            printed = _relaxed_as_printed(*size, descending, alpha)
            if printed is not None:
                assert relaxed(*size, TILE, GRIDS_4, alpha) == printed, (size, alpha)


def test_a_larger_alpha_never_needs_more_tiles_on_average() -> None:
    tiles = [
        sum(m * n for m, n in (relaxed(*size, TILE, GRIDS_4, alpha) for size in _sizes(300)))
        for alpha in (0.0, 0.1, 0.5)
    ]
    assert tiles == sorted(tiles, reverse=True)
    assert tiles[0] > tiles[2]


def test_largest_effective_equals_transformers() -> None:
    resolutions = [[rows * TILE, columns * TILE] for columns, rows in GRIDS_4]
    for width, height in _sizes(300):
        # transformers finds nothing where int() leaves no pixel on any canvas
        expected = select_best_resolution((height, width), resolutions) or (TILE, TILE)
        grid = largest_effective(width, height, TILE, GRIDS_4)
        assert (grid[1] * TILE, grid[0] * TILE) == expected, (width, height)


@pytest.mark.parametrize("max_tiles", [1, 6, 12])
def test_closest_ratio_equals_transformers(max_tiles: int) -> None:
    squares = [(side, side) for side in (100, 384, 500, 768, 800, 1200)]  # many equally close grids
    for width, height in _sizes(200) + squares:
        expected = get_optimal_tiled_canvas((height, width), (TILE, TILE), 1, max_tiles)
        assert closest_ratio(width, height, TILE, grids_of_at_most(max_tiles)) == expected, (width, height)


def _without_pixels(height: int, width: int) -> np.ndarray:
    """(3, height, width) that takes one byte."""
    return np.broadcast_to(np.zeros(1, np.uint8), (3, height, width))


def _resize_without_pixels(image: np.ndarray, size: tuple[int, int], **_: object) -> np.ndarray:
    return _without_pixels(*size)


@pytest.mark.parametrize(("tile", "longest_edge"), [(364, 1456), (512, 2048), (384, 1000), (512, 512), (1024, 8192)])
def test_idefics3_equals_transformers(tile: int, longest_edge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its own get_number_of_image_patches departs from its preprocessing where longest_edge is no multiple of the tile,
    # so the preprocessing itself is run, on pictures without pixels.
    monkeypatch.setattr(image_processing_backends, "np_resize", _resize_without_pixels)
    processor = SmolVLMImageProcessorPil(size={"longest_edge": longest_edge}, max_image_size={"longest_edge": tile})
    rule = _rule("idefics3", tile_size=tile, longest_edge=longest_edge, max_tiles=64)
    for width, height in _sizes(200):
        resized = processor.resize(_without_pixels(height, width), SizeDict(longest_edge=longest_edge))
        canvas = processor.resize_for_vision_encoder(resized, tile)
        _, rows, columns = processor.split_images(canvas, {"longest_edge": tile})
        assert choose_grid(width, height, rule) == (columns or 1, rows or 1), (width, height)


def test_idefics3_resize_stops_at_4096_and_without_a_longest_edge_leaves_the_size() -> None:
    assert idefics3_resized(300, 200, 9000) == (4096, 2730)
    assert idefics3_resized(300, 200, None) == (300, 200)


def test_idefics3_refuses_more_tiles_than_the_bundle_allows() -> None:
    with pytest.raises(ImageError, match="640 x 480 pixels needs 4 x 3 tiles, more than the 11"):
        choose_grid(640, 480, _rule("idefics3", longest_edge=1536, max_tiles=11))


def test_one_tile_is_transformers_do_image_splitting_off() -> None:
    assert choose_grid(640, 480, _rule("idefics3", longest_edge=1536, max_tiles=1)) == (1, 1)
    assert choose_grid(640, 480, _rule("single", max_tiles=1)) == (1, 1)


def test_choose_grid_takes_candidates_and_alpha_from_the_rule() -> None:
    assert choose_grid(768, 1536, _rule("relaxed", grids=GRIDS_3)) == (2, 3)
    assert choose_grid(768, 1536, _rule("relaxed", grids=GRIDS_4)) == (2, 4)
    assert choose_grid(394, 390, _rule("relaxed", grids=GRIDS_3)) == (1, 1)
    assert choose_grid(394, 390, _rule("relaxed", grids=GRIDS_3, alpha=0.0)) == (3, 3)
    assert choose_grid(768, 1536, _rule("relaxed", grids=GRIDS_4, max_tiles=6)) == (2, 3)
    assert choose_grid(768, 1536, _rule("largest-effective", grids=((1, 1), (2, 2)))) == (2, 2)
    assert choose_grid(380, 76, _rule("closest-ratio", max_tiles=6)) == (5, 1)


def test_rule_without_a_usable_grid_is_refused() -> None:
    with pytest.raises(OptionError, match="None of the image rule's 1 grids has at most 3 tiles"):
        choose_grid(10, 10, _rule("relaxed", grids=((2, 2),), max_tiles=3))


def test_enumerations() -> None:
    assert grids_up_to(2, 3) == ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3))
    assert grids_of_at_most(4) == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
