"""Training's pages, drawn by worker processes: every sheaf of them from its mix's name and its number alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handlens_export.reader.chat import chat
from handlens_export.reader.examples import Example, asked_example
from handlens_export.reader.fonts import Family
from handlens_export.reader.labels import SLOTS, Canvas, labels
from handlens_export.reader.pointers import Pointers
from handlens_export.reader.questions import KINDS
from handlens_export.reader.rule import RULE
from handlens_export.reader.scene import Kind
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.tokenizer import build
from handlens_export.reader.turns import Turns, encode
from handlens_runtime.images.expand import expand
from handlens_runtime.images.preprocess import cut, lay_out

LABELS = SLOTS + 2
"""Numbers known of a patch: its characters, its shape, its colour."""
VARIANTS = 3
"""Sets of questions about one page, since it is learned from several times."""
QUESTIONS = ((3, 8), (7, 14), (17, 24))
"""Of a set about pages of at most so many tiles: the more tiles, the more is saved by asking them at once."""
Grid = tuple[int, int]
"""Columns and rows of tiles."""


@dataclass(frozen=True)
class Mix:
    """What pages are drawn from."""

    seed: str
    layouts: tuple[str, ...]
    typefaces: tuple[Family, ...]
    kinds: tuple[Kind, ...] = KINDS
    chat: float = 0.04
    """Share of sheaves without pictures."""
    conversations: float = 0.2
    """Share of sets of questions that are turns of one conversation."""


@dataclass(frozen=True)
class Sheaf:
    """Some pages of about one size, stacked."""

    tiles: Tensor
    """(n, 3, tile, tile) uint8, as the bundle cuts them, before they are normalized."""
    labels: Tensor
    """(n, patches, LABELS) uint8."""
    counts: tuple[int, ...]
    """Tiles of each page; 0 for chat."""
    turns: tuple[tuple[Turns, ...], ...]
    """Of each page, in VARIANTS sets."""
    mix: str
    """Its seed."""


@dataclass(frozen=True)
class Order:
    """A sheaf to draw."""

    mix: Mix
    number: int
    grid: Grid
    tiles: int
    """Of the whole sheaf, about."""


class Drawer:
    """Draws orders; the same order gives the same sheaf."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Built where it is used: worker processes do not get it through a pipe."""
        return build()

    def draw(self, order: Order) -> Sheaf:
        """Raises ExportError where fonts were not fetched."""
        random = Random(f"{order.mix.seed} {order.number}")
        many = tiles_of(order.grid)
        if random.random() < order.mix.chat:
            return self._chat(random, order.mix, 8)
        made = [self._page(random, order.mix, order.grid) for _ in range(max(1, order.tiles // many))]
        return Sheaf(
            torch.from_numpy(np.concatenate([tiles for tiles, _, _ in made])),
            torch.from_numpy(np.concatenate([known for _, known, _ in made])),
            tuple(len(tiles) for tiles, _, _ in made),
            tuple(turns for _, _, turns in made),
            order.mix.seed,
        )

    def _chat(self, random: Random, mix: Mix, count: int) -> Sheaf:
        said = tuple(
            tuple(encode(self.tokenizer, "", chat(random, 6), random.random() >= mix.conversations) for _ in "123")
            for _ in range(count)
        )
        side = RULE.tile_size
        tiles = torch.zeros(0, 3, side, side, dtype=torch.uint8)
        known = torch.zeros(0, Sizes().patches, LABELS, dtype=torch.uint8)
        return Sheaf(tiles, known, (0,) * count, said, mix.seed)

    def _page(self, random: Random, mix: Mix, grid: Grid) -> tuple[np.ndarray, np.ndarray, tuple[Turns, ...]]:
        each = next(many for most, many in QUESTIONS if tiles_of(grid) <= most)
        made = asked_example(random, mix.layouts, mix.typefaces, grid, VARIANTS * each, mix.kinds)
        tiles, known, picture, pointers = seen(made)
        sets = []
        for start in range(0, max(1, len(made.turns) - each // 2), each):
            chosen = made.turns[start : start + each]
            alone = random.random() >= mix.conversations
            sets.append(encode(self.tokenizer, picture, chosen, alone, pointers))
        return tiles, known, tuple(sets)


def seen(made: Example) -> tuple[np.ndarray, np.ndarray, str, Pointers]:
    """An example's tiles (n, 3, tile, tile) uint8, labels (n, patches, LABELS), the text of its image tokens, and what
    of the page each of these shows.
    """
    layout = lay_out(made.picture, RULE)
    canvas = Canvas(
        made.picture.size, layout.columns, layout.rows, RULE.tile_size, Sizes().patch, layout.thumbnail is not None
    )
    dense = labels(made.page, made.where, canvas)
    tiles = cut(layout, RULE).transpose(0, 3, 1, 2)
    known = np.concatenate((dense.characters, dense.shapes[..., None], dense.colours[..., None]), axis=-1)
    pointers = Pointers.of(made.page, made.where, canvas, Sizes().downsample)
    return np.ascontiguousarray(tiles), known, expand(RULE, layout.columns, layout.rows), pointers


def tiles_of(grid: Grid) -> int:
    """The thumbnail counted."""
    return grid[0] * grid[1] + (grid != (1, 1))


class _Drawn(Dataset[Sheaf]):
    def __init__(self) -> None:
        self.drawer = Drawer()

    def __getitem__(self, order: Order) -> Sheaf:
        return self.drawer.draw(order)


class _Orders:
    """Asked for the next order only when a worker is free for it, so that they follow the curriculum."""

    def __init__(self, following: Callable[[], Order]) -> None:
        self.following = following

    def __iter__(self) -> Iterator[Order]:
        while True:
            yield self.following()


def sheaves(following: Callable[[], Order], workers: int) -> Iterator[Sheaf]:
    """Sheaves without end, of whatever `following` orders, drawn ahead by worker processes."""
    yield from DataLoader(
        _Drawn(),
        sampler=_Orders(following),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3,
        in_order=False,
        worker_init_fn=_modest,
    )


def _modest(worker: int) -> None:
    """Draw with what training leaves of the cores, where they share them."""
    torch.set_num_threads(1)
    os.nice(10)
