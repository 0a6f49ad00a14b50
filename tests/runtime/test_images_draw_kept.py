"""The drawing darkens what a layer did not keep, tile by tile."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.errors import OptionError
from handlens_runtime.images.draw_kept import GAP, LABEL, WIDTH, draw_kept
from handlens_runtime.manifest import ImageRule

TILE = 64


def rule_of(thumbnail: str = "none", tokens: int = 4) -> ImageRule:
    return ImageRule.model_validate(
        {
            "tiling": "closest-ratio",
            "tile_size": TILE,
            "max_tiles": 2,
            "grids": [(1, 1), (2, 1)],
            "thumbnail": thumbnail,
            "tokens_per_tile": tokens,
            "image_token": "<i>",
            "placeholder": "<i>",
        }
    )


@pytest.mark.parametrize(("thumbnail", "tiles", "shown"), [("none", 2, 0), ("last", 3, 0), ("first", 3, 1)])
def test_a_token_lies_where_its_part_of_the_picture_does(thumbnail: str, tiles: int, shown: int) -> None:
    kept = np.zeros((2, tiles * 4), bool)
    kept[0, shown * 4 + 1] = True  # the upper right quarter of the first tile of the grid
    kept[1] = True
    sheet = np.asarray(draw_kept(Image.new("RGB", (2 * TILE, TILE), "white"), rule_of(thumbnail), kept))
    assert sheet.shape[1] == 2 * WIDTH + GAP
    across = tiles if thumbnail == "none" else 3
    side = WIDTH / across / 2
    panel = sheet[LABEL:, :WIDTH, 0]
    for row in range(2):
        for column in range(4):
            value = panel[int((row + 0.5) * side), int((column + 0.5) * side)]
            assert (value > 200) == ((row, column) == (0, 1)), (row, column)
    assert sheet[LABEL:, WIDTH + GAP : WIDTH + GAP + int(4 * side), 0].min() > 200


def test_layers_fill_rows_of_six() -> None:
    sheet = draw_kept(Image.new("RGB", (TILE, TILE)), rule_of(), np.ones((7, 4), bool))
    assert sheet.size == (6 * WIDTH + 5 * GAP, 2 * (WIDTH + LABEL) + GAP)


def test_tokens_that_lie_on_no_square_are_refused() -> None:
    with pytest.raises(OptionError, match="on a square"):
        draw_kept(Image.new("RGB", (TILE, TILE)), rule_of(tokens=5), np.ones((1, 5), bool))
