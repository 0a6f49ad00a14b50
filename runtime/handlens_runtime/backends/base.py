"""The one seam between the engine and a program: what every backend can do, and nothing about how.

A backend knows arrays and positions. It knows nothing about text, pictures, sampling or turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rows = NDArray[Any]
"""What a decoder eats, a row a token: embeddings (t, width), or the ids themselves (t,) where a text program embeds
inside. Opaque to the engine, which only slices and concatenates along axis 0."""


class Backend(Protocol):
    """Runs the programs of one bundle.

    The key-value cache lives behind this seam and is addressed by position: `decode` at position p overwrites
    what was there and sees positions 0..p+n-1 only, so going back to an earlier position needs no reset.
    """

    @property
    def name(self) -> str:
        """Name in `manifest.backends`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence each: what makes it slower than it could be here, such as a C++ compiler that is missing."""

    @property
    def kv_bytes(self) -> int:
        """Bytes that the key-value cache holds, as allocated."""

    def encode(self, tiles: Array) -> tuple[Array, Array]:
        """Vision encoder and projector.

        tiles: (n, 3, tile_size, tile_size), normalized. Returns embeddings (n, tokens_per_tile, width) and the
        encoder's features before the projector (n, feature tokens, feature width), for `check`.
        """

    def release_encoder(self) -> None:
        """Give back the vision encoder's memory as far as possible; the next `encode` takes time to get it back."""

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        """Token embedding as the decoder expects it (scaled where the family scales): ids (t,) to t rows."""

    def decode(self, rows: Rows, position: int) -> Array:
        """One decoder pass: t rows at positions position..position+t-1, 1 <= t <= max_chunk.

        Returns the logits of the last of them, (vocab_size,).
        """


class SparseBackend(Backend, Protocol):
    """Of a bundle with `manifest.sparsity`, whose layers can leave tokens of a prompt out."""

    def decode_prompt(
        self, rows: Rows, position: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Array, NDArray[np.bool_]]:
        """As `decode`, of a whole prompt or a later turn of one: also which rows each layer kept, (layers, t).

        A later pass may begin at `position` or behind these rows, not among them. The pass may take minutes: where
        the backend can, it looks time and again whether it is `stopped`, and ends early by raising Stopped.
        """
