"""How the reader's pictures are cut: the rule that its checkpoint states, and so what the bundle will make of them."""

from __future__ import annotations

from handlens_export.reader.sizes import Sizes
from handlens_export.reader.tokenizer import IMAGE
from handlens_runtime.images.tiling import grids_up_to
from handlens_runtime.manifest import ImageRule

MAX_GRID = (4, 4)
RULE = ImageRule(
    tiling="relaxed",
    tile_size=Sizes().tile,
    max_tiles=MAX_GRID[0] * MAX_GRID[1],
    grids=grids_up_to(*MAX_GRID),
    alpha=0.1,
    thumbnail="first",
    tokens_per_tile=Sizes().tokens_per_tile,
    image_token=IMAGE,
    placeholder=IMAGE,
    row_end="\n",
)
