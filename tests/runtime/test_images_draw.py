"""The drawing shows the tiles that the encoder gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handlens_runtime.images.decode import open_image
from handlens_runtime.images.draw import draw_tiles
from handlens_runtime.images.preprocess import lay_out
from handlens_runtime.manifest import ImageRule

TILE = 192
GAP = 8
ROCKET = Path(__file__).parents[2] / "assets" / "photographs" / "rocket.jpg"


def _rule(thumbnail: str) -> ImageRule:
    return ImageRule.model_validate(
        {
            "tiling": "closest-ratio",
            "tile_size": TILE,
            "max_tiles": 6,
            "thumbnail": thumbnail,
            "tokens_per_tile": 4,
            "image_token": "<i>",
            "placeholder": "<i>",
        }
    )


@pytest.mark.parametrize(
    ("thumbnail", "width"), [("none", 3 * TILE), ("first", 4 * TILE + GAP), ("last", 4 * TILE + GAP)]
)
def test_every_tile_is_framed_and_its_inside_untouched(thumbnail: str, width: int) -> None:
    image, rule = open_image(ROCKET), _rule(thumbnail)
    sheet = draw_tiles(image, rule)
    layout = lay_out(image, rule)
    assert sheet.size == (width, 2 * TILE)
    drawn, canvas = np.asarray(sheet), np.asarray(layout.canvas)
    for left in range(0, 3 * TILE, TILE):
        for top in range(0, 2 * TILE, TILE):
            assert (drawn[top, left : left + TILE] == (255, 0, 128)).all()
            assert (drawn[top : top + TILE, left] == (255, 0, 128)).all()
            inside = np.s_[top + TILE // 2 : top + TILE - 1, left + 1 : left + TILE - 1]  # below the number
            np.testing.assert_array_equal(drawn[inside], canvas[inside])
    if layout.thumbnail is not None:
        left = 3 * TILE + GAP
        beside = drawn[TILE // 2 : TILE - 1, left + 1 : left + TILE - 1]
        np.testing.assert_array_equal(beside, np.asarray(layout.thumbnail)[TILE // 2 : TILE - 1, 1 : TILE - 1])


def test_numbers_follow_the_order_of_encoding() -> None:
    image = open_image(ROCKET)
    first, last = (np.asarray(draw_tiles(image, _rule(thumbnail))) for thumbnail in ("first", "last"))
    number = np.s_[:24, 1:24]
    beside = np.s_[:24, 3 * TILE + GAP + 1 : 3 * TILE + GAP + 24]
    white = (255, 255, 255)
    # "1" stands on the thumbnail of one sheet and on the first grid tile of the other.
    np.testing.assert_array_equal((first[beside] == white).all(-1), (last[number] == white).all(-1))
    assert ((first[number] == white).all(-1) != (last[number] == white).all(-1)).any()
