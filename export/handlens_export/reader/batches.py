"""Batches of training: every one from its stage's name and its step alone, so that a run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handlens_export.reader.batch import Batch
from handlens_export.reader.chat import chat
from handlens_export.reader.examples import TILE, example
from handlens_export.reader.fonts import Family
from handlens_export.reader.labels import SLOTS, Canvas, Labels, labels
from handlens_export.reader.model import Sizes
from handlens_export.reader.questions import KINDS
from handlens_export.reader.scene import Kind, Turn
from handlens_export.reader.tokenizer import ASSISTANT, END, IMAGE, USER, build
from handlens_runtime.images.preprocess import prepare
from handlens_runtime.images.tiling import choose_grid, grids_up_to
from handlens_runtime.manifest import ImageRule

MAX_GRID = (4, 4)
RULE = ImageRule(
    tiling="relaxed",
    tile_size=TILE,
    max_tiles=MAX_GRID[0] * MAX_GRID[1],
    grids=grids_up_to(*MAX_GRID),
    alpha=0.1,
    thumbnail="first",
    tokens_per_tile=Sizes().tokens_per_tile,
    image_token=IMAGE,
    placeholder=IMAGE,
)
"""The same tiles that the bundle will make."""


@dataclass(frozen=True)
class Mix:
    """What a stage draws from."""

    seed: str
    layouts: tuple[str, ...]
    typefaces: tuple[Family, ...]
    grids: tuple[tuple[int, int], ...]
    """One is drawn for each step, all examples of a step having about as many tiles."""
    tiles: int
    """Of a step, about."""
    questions: int
    """Of one picture."""
    chat: float = 0.0
    """Share of examples without a picture."""
    kinds: tuple[Kind, ...] = KINDS
    """Of the questions about pictures."""
    pictures: bool = True
    """False leaves the pixels out, where only labels are wanted."""
    conversations: float = 0.2
    """Share of examples whose questions are turns of one conversation; in the others none sees another, since an
    earlier answer often holds a later one."""


class Batches(Dataset[Batch]):
    """Item `step` is that step's batch."""

    def __init__(self, mix: Mix, sizes: Sizes) -> None:
        self.mix, self.sizes = mix, sizes

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Built where it is used: worker processes do not get it through a pipe."""
        return build()

    def __getitem__(self, step: int) -> Batch:
        random = Random(f"{self.mix.seed} {step}")
        grid = random.choice(self.mix.grids)
        many = grid[0] * grid[1] + (grid != (1, 1))
        drawn = [self._one(random, grid) for _ in range(max(1, self.mix.tiles // many))]
        return _joined(drawn, self.sizes)

    def _one(self, random: Random, grid: tuple[int, int]) -> _One:
        mix = self.mix
        alone = random.random() >= mix.conversations
        if random.random() < mix.chat:
            return _One(None, None, chat(random, mix.questions), self.tokenizer, 0, alone)
        made = example(random, mix.layouts, mix.typefaces, grid, mix.questions, mix.pictures, mix.kinds)
        while not made.turns:  # a page about which nothing unambiguous can be asked
            made = example(random, mix.layouts, mix.typefaces, grid, mix.questions, mix.pictures, mix.kinds)
        columns, rows = choose_grid(*made.picture.size, RULE)
        canvas = Canvas(made.picture.size, columns, rows, TILE, self.sizes.patch, (columns, rows) != (1, 1))
        dense = labels(made.page, made.where, canvas)
        pixels = torch.from_numpy(prepare(made.picture, RULE).pixels) if mix.pictures else None
        image = len(dense.shapes) * self.sizes.tokens_per_tile
        return _One(pixels, dense, made.turns, self.tokenizer, image, alone)


class _One:
    """An example as tokens; its image tokens come first, as the chat template has them."""

    def __init__(
        self,
        pixels: Tensor | None,
        dense: Labels | None,
        turns: tuple[Turn, ...],
        tokenizer: Tokenizer,
        image: int,
        alone: bool,
    ) -> None:
        self.pixels, self.dense = pixels, dense
        self.kinds = tuple(turn.kind for turn in turns)
        vocabulary = tokenizer.get_vocab()
        user, assistant, end, self.image = (vocabulary[token] for token in (USER, ASSISTANT, END, IMAGE))
        self.ids = [user, *[self.image] * image]
        self.answer = [False] * len(self.ids)
        self.positions = list(range(len(self.ids)))
        self.segments = [0] * len(self.ids)
        first = len(self.ids)
        for number, turn in enumerate(turns):
            again = [user] if number and not alone else []
            asked = [*again, *tokenizer.encode(turn.question).ids, end, assistant]
            said = [*tokenizer.encode(turn.answer).ids, end]
            self.ids += asked + said
            self.answer += [False] * len(asked) + [True] * len(said)
            begin = first if alone else len(self.positions)
            self.positions += range(begin, begin + len(asked) + len(said))
            self.segments += [number + 1 if alone else 0] * (len(asked) + len(said))


def _joined(drawn: list[_One], sizes: Sizes) -> Batch:
    longest = max(len(one.ids) for one in drawn)
    ids = torch.zeros(len(drawn), longest, dtype=torch.long)
    targets = torch.full((len(drawn), longest), -1, dtype=torch.long)
    positions, segments = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, one in enumerate(drawn):
        tokens = torch.tensor(one.ids)
        ids[row, : len(tokens)] = tokens
        after = torch.where(torch.tensor(one.answer), tokens, -1)
        targets[row, : len(tokens) - 1] = after[1:]
        positions[row, : len(tokens)] = torch.tensor(one.positions)
        segments[row, : len(tokens)] = torch.tensor(one.segments)
    pixels = [one.pixels for one in drawn if one.pixels is not None]
    dense = [one.dense for one in drawn if one.dense is not None]
    patches = (sizes.tile // sizes.patch) ** 2
    characters, shapes, colours = (
        torch.from_numpy(np.concatenate([getattr(one, part) for one in dense])).long() if dense else empty
        for part, empty in (
            ("characters", torch.zeros(0, patches, SLOTS, dtype=torch.long)),
            ("shapes", torch.zeros(0, patches, dtype=torch.long)),
            ("colours", torch.zeros(0, patches, dtype=torch.long)),
        )
    )
    return Batch(
        tiles=torch.cat(pixels) if pixels else torch.zeros(0),
        characters=characters,
        shapes=shapes,
        colours=colours,
        ids=ids,
        places=ids.eq(drawn[0].image),
        targets=targets,
        positions=positions,
        segments=segments,
        kinds=tuple(one.kinds for one in drawn),
    )


def from_step(mix: Mix, sizes: Sizes, first: int, last: int, workers: int = 1) -> Iterator[Batch]:
    """Batches of the steps `first` to `last` - 1, drawn ahead by worker processes."""
    loader = DataLoader(
        Batches(mix, sizes),
        sampler=range(first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    yield from loader


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
