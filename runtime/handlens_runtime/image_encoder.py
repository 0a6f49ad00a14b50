"""Pictures to embeddings, each picture once: tiles in fixed batches, results kept by content.

source ─open, digest, tiles─▶ Picture        (look: what the prompt needs, no encoder pass)
digest ─tiles in batches of 4─▶ embeddings   (embeddings: when a decoder pass needs them)
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from time import perf_counter

import numpy as np

from handlens_runtime.backends.base import Array, Backend
from handlens_runtime.chat import ImageSource
from handlens_runtime.errors import BackendError
from handlens_runtime.images.decode import digest, open_image
from handlens_runtime.images.preprocess import Tiles, prepare
from handlens_runtime.manifest import ImageRule
from handlens_runtime.prompt import Picture
from handlens_runtime.stats import Stats
from handlens_runtime.stop import StopSignal

TILE_BATCH = 4
"""Most tiles in one encoder pass (BlueLM-V-3B, section 3.3: 4 is best on its phone); the last batch may be smaller."""


class ImageEncoder:
    """Looks at pictures and encodes them, with a cache of embeddings by content digest."""

    def __init__(self, backend: Backend, rule: ImageRule, width: int, cache_bytes: int) -> None:
        """`width` is an embedding's; the least recently used beyond `cache_bytes` are dropped, but the newest stays."""
        self._backend = backend
        self._rule = rule
        self._width = width
        self._cache_bytes = cache_bytes
        self._embeddings: OrderedDict[str, Array] = OrderedDict()
        self._tiles: dict[str, Tiles] = {}
        self._sources: dict[str, ImageSource] = {}
        self._pictures: dict[str, Picture] = {}
        self._digests: dict[tuple[str, int, int, int, int], str] = {}
        """Digest by file identity: an unchanged file of an earlier turn is not decoded again."""
        self._used = False
        """Whether the backend's encoder ran since its memory was last given back."""

    def start(self) -> None:
        """Forget the tiles of an earlier prompt; embeddings stay."""
        self._tiles.clear()
        self._sources.clear()

    def look(self, source: ImageSource, stats: Stats) -> Picture:
        """Open a picture as far as a prompt needs it. Raises ImageError."""
        began = perf_counter()
        try:
            identity = _file_identity(source)
            known = self._digests.get(identity) if identity is not None else None
            picture = self._pictures[known] if known is not None else self._open(source)
            if identity is not None:
                self._digests[identity] = picture.digest
            self._sources[picture.digest] = source
            return picture
        finally:
            stats.image_decode_s += perf_counter() - began

    def embeddings(self, content: str, signal: StopSignal, stats: Stats) -> Array:
        """Embeddings (tiles * tokens_per_tile, width) of a picture that was looked at, by its digest.

        Raises Stopped between two batches of tiles; a picture encoded by half is not kept.
        """
        cached = self._embeddings.get(content)
        if cached is None:
            cached = self._encode(self._pixels(content, stats), signal, stats)
            self._embeddings[content] = cached
            self._evict()
        self._embeddings.move_to_end(content)
        return cached

    def release(self) -> None:
        """Give back the encoder's memory, if it ran; the embeddings stay."""
        if self._used:
            self._backend.release_encoder()
            self._used = False

    def _open(self, source: ImageSource) -> Picture:
        image = open_image(source, self._rule.max_pixels, self._rule.background)
        content = digest(image)
        if content not in self._embeddings:
            tiles = self._tiles[content] = prepare(image, self._rule)
            self._pictures[content] = Picture(content, tiles.columns, tiles.rows, len(tiles.pixels))
        return self._pictures[content]

    def _pixels(self, content: str, stats: Stats) -> Array:
        if content not in self._tiles:  # known from an earlier turn, but its embeddings were dropped since
            began = perf_counter()
            picture = self._open(self._sources[content])
            stats.image_decode_s += perf_counter() - began
            if picture.digest != content:
                raise BackendError("A picture's file changed while it was being read; ask again.")
        return self._tiles.pop(content).pixels

    def _encode(self, pixels: Array, signal: StopSignal, stats: Stats) -> Array:
        batches = []
        for begin in range(0, len(pixels), TILE_BATCH):
            signal.check()
            batch = pixels[begin : begin + TILE_BATCH]  # (n <= 4, 3, tile_size, tile_size)
            began = perf_counter()
            self._used = True
            embeddings, _ = self._backend.encode(batch)
            stats.encode_s += perf_counter() - began
            stats.tiles += len(batch)
            expected = (len(batch), self._rule.tokens_per_tile, self._width)
            if embeddings.shape != expected:
                raise BackendError(
                    f"The vision encoder returned shape {embeddings.shape}, the manifest says {expected}; "
                    "export the bundle again."
                )
            # A copy: a backend may reuse its output buffer for the next batch.
            batches.append(np.array(embeddings).reshape(-1, self._width))
        return np.concatenate(batches)

    def _evict(self) -> None:
        size = sum(array.nbytes for array in self._embeddings.values())
        while size > self._cache_bytes and len(self._embeddings) > 1:
            size -= self._embeddings.popitem(last=False)[1].nbytes


def _file_identity(source: ImageSource) -> tuple[str, int, int, int, int] | None:
    """What tells that a file is unchanged since an earlier turn; None for a picture that is not a file."""
    if not isinstance(source, str | Path):
        return None
    try:
        stat = os.stat(source)
    except OSError:  # opening it gives the sentence
        return None
    return str(source), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
