"""A picture's place in the prompt: the text that replaces the chat template's placeholder, and its tokens.

The same order as the tiles of `preprocess.prepare`, so the k-th image token stands for the k-th embedding.
"""

from __future__ import annotations

from handlens_runtime.manifest import ImageRule


def expand(rule: ImageRule, columns: int, rows: int) -> str:
    """The text of one picture cut into `columns` x `rows` tiles; equal to transformers' processors.

    Idefics3's, for two columns and one row, with thumbnail "last":

        <fake><row_1_col_1><image>…<fake><row_1_col_2><image>…\\n   tile_before, tokens; row_end
        \\n<fake><global-img><image>…<fake>                         thumbnail_before, tokens; after
    """
    tokens = rule.image_token * rule.tokens_per_tile
    if (columns, rows) == (1, 1):
        return rule.single_before + tokens + rule.after
    thumbnail = rule.thumbnail_before + tokens
    grid = "".join(
        "".join(_tile_before(rule, row, column) + tokens for column in range(1, columns + 1)) + rule.row_end
        for row in range(1, rows + 1)
    )
    match rule.thumbnail:
        case "none":
            return grid + rule.after
        case "first":
            return thumbnail + grid + rule.after
        case "last":
            return grid + thumbnail + rule.after


def tile_count(rule: ImageRule, columns: int, rows: int) -> int:
    """Tiles to encode, the thumbnail counted."""
    alone = rule.thumbnail == "none" or (columns, rows) == (1, 1)
    return columns * rows + (0 if alone else 1)


def _tile_before(rule: ImageRule, row: int, column: int) -> str:
    # Not str.format: a family's own tokens may hold braces.
    return rule.tile_before.replace("{row}", str(row)).replace("{col}", str(column))
