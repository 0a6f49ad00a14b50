"""Drawn pages, kept to be learned from more than once: drawing one takes a processor longer than an accelerator needs
to learn from it.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from torch import Tensor

from handlens_export.reader.batch import Batch, assemble
from handlens_export.reader.draw import LABELS, Sheaf
from handlens_export.reader.rule import RULE
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.tokenizer import IMAGE, build
from handlens_export.reader.turns import Turns

NOISE = 0.04
"""Most standard deviation of the grain that a page gets anew each time, of levels from -1 to 1."""
CHOICE = 4
"""Pages drawn from the pool for each that a batch takes: rows of all lengths leave two fifths of it to padding."""
CHAT = 0.04
"""Share of rows without a picture."""


@dataclass
class _Page:
    start: int
    """In the ring."""
    count: int
    turns: tuple[Turns, ...]
    mix: str
    next: int = 0
    """Set of questions that is asked next."""

    def asked(self) -> Turns:
        """Each set in its turn."""
        self.next += 1
        return self.turns[(self.next - 1) % len(self.turns)]


@dataclass
class Pool:
    """A ring of `capacity` tiles on a device; when it is full, the oldest pages go."""

    capacity: int
    device: torch.device
    pages: deque[_Page] = field(default_factory=deque)
    drawn: int = 0
    """Pages so far."""

    def __post_init__(self) -> None:
        side, patches = RULE.tile_size, Sizes().patches
        self.tiles = torch.empty(self.capacity, 3, side, side, dtype=torch.uint8, device=self.device)
        self.labels = torch.empty(self.capacity, patches, LABELS, dtype=torch.uint8, device=self.device)
        self.image_id = build().get_vocab()[IMAGE]
        self.by_count: dict[tuple[str, int], deque[_Page]] = defaultdict(deque)
        self.chat: deque[tuple[Turns, ...]] = deque(maxlen=4096)
        self.at = 0
        self.lock = threading.Lock()
        cuda = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]

    def add(self, sheaf: Sheaf) -> None:
        """Put a sheaf into the ring; from one thread only."""
        count = len(sheaf.tiles)
        if not count:
            with self.lock:
                self.chat.extend(sheaf.turns)
            return
        if self.at + count > self.capacity:
            self.at = 0
        start = self.at
        with self.lock:
            # Those about to be overwritten and as many again, which a step under way may still read.
            while self.pages and _within(self.pages[0].start, start, 3 * count, self.capacity):
                gone = self.pages.popleft()
                self.by_count[gone.mix, gone.count].popleft()
        with torch.cuda.stream(self.stream):
            self.tiles[start : start + count].copy_(sheaf.tiles)
            self.labels[start : start + count].copy_(sheaf.labels)
        if self.stream:
            self.stream.synchronize()
        with self.lock:
            for many, turns in zip(sheaf.counts, sheaf.turns, strict=True):
                page = _Page(start, many, turns, sheaf.mix)
                self.pages.append(page)
                self.by_count[sheaf.mix, many].append(page)
                start += many
                self.drawn += 1
        self.at = start

    def has(self, mix: str, count: int, pages: int) -> bool:
        """Whether there are so many pages of `count` tiles."""
        with self.lock:
            return len(self.by_count[mix, count]) >= pages

    def batch(self, random: Random, mix: str, count: int, tiles: int) -> Batch:
        """Some pages of `count` tiles, about `tiles` in all, each with its next set of questions, and a few chats."""
        with self.lock:
            there = self.by_count[mix, count]
            wanted = max(1, tiles // max(2, count))  # rows of one tile are mostly questions
            chosen = _alike(there, wanted, random)
            turns = [page.asked() for page in chosen]
            chats = int(CHAT * wanted + random.random()) if self.chat else 0
            turns += [random.choice(self.chat[random.randrange(len(self.chat))]) for _ in range(chats)]
        index = np.concatenate([np.arange(page.start, page.start + count) for page in chosen])
        at = torch.from_numpy(index).to(self.device, non_blocking=True)
        return assemble(turns, self.image_id, grained(self.tiles[at]), self.labels[at])


def _alike(there: Sequence[_Page], count: int, random: Random) -> list[_Page]:
    """So many of the pages whose next questions are about equally long; one comes twice only where they are too few."""
    drawn = random.sample(there, min(len(there), count * CHOICE))
    drawn += random.choices(there, k=max(0, count - len(drawn)))
    drawn.sort(key=lambda page: page.turns[page.next % len(page.turns)].tokens.shape[1])
    start = count * random.randrange(len(drawn) // count)  # of whole blocks, so that none is likelier for its length
    return drawn[start : start + count]


def normalized(tiles: Tensor) -> Tensor:
    """Grey levels as the encoder takes them."""
    return tiles.to(torch.float32) / 127.5 - 1


def grained(tiles: Tensor) -> Tensor:
    """Normalized, with the grain of a camera in half of them, other each time."""
    levels = normalized(tiles).to(torch.bfloat16 if tiles.is_cuda else torch.float32)
    strength = torch.rand(len(tiles), 1, 1, 1, device=tiles.device, dtype=levels.dtype) * 2 - 1
    return levels + torch.randn_like(levels[:, :1]) * strength.clamp_min(0) * NOISE


def _within(start: int, begin: int, count: int, capacity: int) -> bool:
    return (start - begin) % capacity < count
