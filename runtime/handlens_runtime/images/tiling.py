"""How many tiles a picture gets: pure functions of its size, nothing about pixels.

A grid is (columns, rows). Where the rules differ, for a picture of W0 x H0 pixels:

    relaxed             most effective resolution, but a larger grid must bring `alpha` more of it (BlueLM-V-3B)
    largest-effective   most effective resolution, then least waste (LLaVA-NeXT)
    closest-ratio       columns / rows closest to W0 / H0 (InternVL 1.5)
    idefics3            the picture, resized to a given longer side, rounded up to whole tiles (Idefics3, SmolVLM)
    single              one tile
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from handlens_runtime.errors import ImageError, OptionError
from handlens_runtime.manifest import ImageRule

Grid = tuple[int, int]
"""(columns, rows)."""

IDEFICS3_MAX_SIDE = 4096
"""Idefics3's processor never makes a side longer than this, whatever `longest_edge` says."""


def choose_grid(width: int, height: int, rule: ImageRule) -> Grid:
    """The grid that `rule` gives a picture of `width` x `height` pixels (both at least 1).

    Raises OptionError if no candidate grid has at most `rule.max_tiles` tiles, ImageError if `idefics3` would need
    more tiles than that.
    """
    match rule.tiling:
        case "relaxed":
            return relaxed(width, height, rule.tile_size, candidates(rule), rule.alpha)
        case "largest-effective":
            return largest_effective(width, height, rule.tile_size, candidates(rule))
        case "closest-ratio":
            return closest_ratio(width, height, rule.tile_size, candidates(rule))
        case "idefics3":
            return _idefics3(width, height, rule)
        case "single":
            return 1, 1


def grids_up_to(columns: int, rows: int) -> tuple[Grid, ...]:
    """All grids of at most `columns` x `rows`, ascending: BlueLM-V-3B's candidates are `grids_up_to(4, 4)`."""
    return tuple((m, n) for m in range(1, columns + 1) for n in range(1, rows + 1))


def grids_of_at_most(tiles: int) -> tuple[Grid, ...]:
    """All grids of at most `tiles` tiles, ascending in tiles, then columns: InternVL 1.5's candidates."""
    grids = ((m, n) for m in range(1, tiles + 1) for n in range(1, tiles // m + 1))
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


def candidates(rule: ImageRule) -> tuple[Grid, ...]:
    """The rule's grids, or every possible grid if it names none; in both cases of at most `max_tiles` tiles.

    Raises OptionError if nothing is left.
    """
    if not rule.grids:
        return grids_of_at_most(rule.max_tiles)
    kept = tuple(grid for grid in rule.grids if grid[0] * grid[1] <= rule.max_tiles)
    if not kept:
        raise OptionError(
            f"None of the image rule's {len(rule.grids)} grids has at most {rule.max_tiles} tiles; allow more tiles."
        )
    return kept


def relaxed(width: int, height: int, tile_size: int, grids: Iterable[Grid], alpha: float) -> Grid:
    """Relaxed aspect ratio matching: BlueLM-V-3B, section 3.2, Algorithm 1 (appendix 7), with its names.

    A grid is taken if it raises the effective resolution Re by more than `alpha`, or if it keeps Re within `alpha` of
    the best and wastes less. Candidates are tried from the largest to the smallest. Where a picture is so thin that
    no canvas shows a pixel of it, which the paper leaves open, the smallest grid is taken.
    """
    descending = sorted(grids, reverse=True)
    best = min(descending, key=lambda grid: grid[0] * grid[1])
    re_max, rw_min = 0, math.inf
    for grid in descending:
        re, rw = _effective_and_wasted(width, height, tile_size, grid)
        if re - re_max > alpha * re_max or (re_max - re < alpha * re_max and rw < rw_min):
            re_max, rw_min, best = re, rw, grid
    return best


def largest_effective(width: int, height: int, tile_size: int, grids: Iterable[Grid]) -> Grid:
    """LLaVA-NeXT's choice: most effective resolution, ties to the least waste, then to the earlier candidate."""

    def key(grid: Grid) -> tuple[int, int]:
        effective, wasted = _effective_and_wasted(width, height, tile_size, grid)
        return effective, -wasted

    return max(grids, key=key)


def closest_ratio(width: int, height: int, tile_size: int, grids: Iterable[Grid]) -> Grid:
    """InternVL 1.5's choice: the grid whose columns / rows is closest to width / height.

    Of equally close grids a larger one wins, but only if its canvas has less than twice the picture's area.
    """
    best, smallest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])):
        difference = abs(width / height - columns / rows)
        canvas = columns * rows * tile_size**2
        if difference < smallest or (difference == smallest and width * height > canvas / 2):
            best, smallest = (columns, rows), difference
    return best


def idefics3_resized(width: int, height: int, longest_edge: int | None) -> tuple[int, int]:
    """(width, height) after Idefics3's first resize; None leaves the size.

    The longer side becomes `longest_edge`, the shorter is made even, then both shrink if a side exceeds
    `IDEFICS3_MAX_SIDE`. Rounding follows transformers, operation by operation.
    """
    if longest_edge is None:
        return width, height
    ratio = width / height
    if width >= height:
        short = int(longest_edge / ratio)
        width, height = longest_edge, max(short + short % 2, 1)
    else:
        short = int(longest_edge * ratio)
        width, height = max(short + short % 2, 1), longest_edge
    if max(width, height) <= IDEFICS3_MAX_SIDE:
        return width, height
    ratio = width / height
    if width >= height:
        return IDEFICS3_MAX_SIDE, max(int(IDEFICS3_MAX_SIDE / ratio), 1)
    return max(int(IDEFICS3_MAX_SIDE * ratio), 1), IDEFICS3_MAX_SIDE


def _idefics3(width: int, height: int, rule: ImageRule) -> Grid:
    """Whole tiles that cover the resized picture; `max_tiles` 1 is transformers' `do_image_splitting=False`."""
    if rule.max_tiles == 1:
        return 1, 1
    long_width, long_height = idefics3_resized(width, height, rule.longest_edge)
    ratio = long_width / long_height
    if long_width >= long_height:
        columns = math.ceil(long_width / rule.tile_size)
        rows = math.ceil(int(columns * rule.tile_size / ratio) / rule.tile_size)
    else:
        rows = math.ceil(long_height / rule.tile_size)
        columns = math.ceil(int(rows * rule.tile_size * ratio) / rule.tile_size)
    columns, rows = max(columns, 1), max(rows, 1)
    if columns * rows > rule.max_tiles:
        raise ImageError(
            f"A picture of {width:,} x {height:,} pixels needs {columns} x {rows} tiles, more than the "
            f"{rule.max_tiles} that the bundle allows; resize it first."
        )
    return columns, rows


def _effective_and_wasted(width: int, height: int, tile_size: int, grid: Grid) -> tuple[int, int]:
    """Pixels of the picture that a canvas can show (never more than it has), and the canvas's other pixels."""
    canvas_width, canvas_height = grid[0] * tile_size, grid[1] * tile_size
    scale = min(canvas_width / width, canvas_height / height)
    effective = min(int(width * scale) * int(height * scale), width * height)
    return effective, canvas_width * canvas_height - effective
