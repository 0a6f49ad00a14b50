"""The decoder and the truth about its key-value cache: which rows it holds, so that turns can share them.

Knows keys and positions; nothing about text or pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from handlens_runtime.backends.base import Array, Backend, Rows
from handlens_runtime.errors import BackendError
from handlens_runtime.prompt import Key


class CachedDecoder:
    """Runs decoder passes and remembers what each cached row stands for."""

    def __init__(self, backend: Backend, vocab_size: int) -> None:
        self._backend = backend
        self._vocab_size = vocab_size
        self._keys: list[Key] = []

    @property
    def keys(self) -> tuple[Key, ...]:
        """What the cached rows stand for, from position 0 on."""
        return tuple(self._keys)

    @property
    def position(self) -> int:
        """Rows cached, which is where the next one goes."""
        return len(self._keys)

    def rewind(self, keys: Sequence[Key]) -> int:
        """Go back to where the cache departs from a prompt; returns the rows that stay.

        One row of the prompt always remains to be computed, for its logits; without a prompt nothing stays.
        """
        common = 0
        for cached, wanted in zip(self._keys, keys[:-1], strict=False):
            if cached != wanted:
                break
            common += 1
        del self._keys[common:]
        return common

    def run(self, rows: Rows, keys: Sequence[Key]) -> Array:
        """One pass over the next rows; returns the last one's logits, (vocab_size,).

        The keys are noted only once the pass is done: after a failure the cache counts as it was before.
        """
        assert len(rows) == len(keys)
        logits = self._backend.decode(rows, len(self._keys))
        if logits.shape != (self._vocab_size,):
            raise BackendError(
                f"The decoder returned logits of shape {logits.shape}, the manifest says {self._vocab_size} ids; "
                "export the bundle again."
            )
        self._keys.extend(keys)
        return logits
