"""The decoder and the truth about its key-value cache: which rows it holds, so that turns can share them.

Knows keys and positions; nothing about text or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from handlens_runtime.backends.base import Array, Backend, Rows, SparseBackend
from handlens_runtime.errors import BackendError
from handlens_runtime.prompt import Key

Span = tuple[int, int]
"""Positions of the first row and behind the last."""


class CachedDecoder:
    """Runs decoder passes and remembers what each cached row stands for."""

    def __init__(self, backend: Backend, vocab_size: int) -> None:
        self._backend = backend
        self._vocab_size = vocab_size
        self._keys: list[Key] = []
        self._sparse: list[Span] = []

    @property
    def keys(self) -> tuple[Key, ...]:
        """What the cached rows stand for, from position 0 on; of a sparse span, a layer may hold some only."""
        return tuple(self._keys)

    @property
    def position(self) -> int:
        """Rows cached, which is where the next one goes."""
        return len(self._keys)

    def rewind(self, keys: Sequence[Key], sparse: Collection[Span] = ()) -> int:
        """Go back to where the cache departs from a prompt; returns the rows that stay.

        One row of the prompt always remains to be computed, for its logits; without a prompt nothing stays. `sparse`:
        the spans of it that are to run by `run_sparse`. Where the cache holds another span, or would have to be entered
        within one, it goes back to the beginning of that one.
        """
        common = 0
        for cached, wanted in zip(self._keys, keys[:-1], strict=False):
            if cached != wanted:
                break
            common += 1
        for begin, _ in set(sparse) ^ set(self._sparse):
            common = min(common, begin)
        for begin, end in self._sparse:
            if begin < common < end:
                common = begin
        del self._keys[common:]
        self._sparse = [span for span in self._sparse if span[1] <= common]
        return common

    def run(self, rows: Rows, keys: Sequence[Key]) -> Array:
        """One pass over the next rows; returns the last one's logits, (vocab_size,).

        The keys are noted only once the pass is done: after a failure the cache counts as it was before.
        """
        assert len(rows) == len(keys)
        logits = self._backend.decode(rows, len(self._keys))
        self._note(keys, logits)
        return logits

    def run_sparse(
        self, rows: Rows, keys: Sequence[Key], stopped: Callable[[], bool]
    ) -> tuple[Array, NDArray[np.bool_]]:
        """The same of a whole span, of which each layer keeps some rows: also which, (layers, t).

        Raises Stopped where the backend saw in time that it is `stopped`.
        """
        assert len(rows) == len(keys)
        begin = len(self._keys)
        logits, kept = cast(SparseBackend, self._backend).decode_prompt(rows, begin, stopped)
        self._note(keys, logits)
        self._sparse.append((begin, begin + len(keys)))
        return logits, kept

    def _note(self, keys: Sequence[Key], logits: Array) -> None:
        if logits.shape != (self._vocab_size,):
            raise BackendError(
                f"The decoder returned logits of shape {logits.shape}, the manifest says {self._vocab_size} ids; "
                "export the bundle again."
            )
        self._keys.extend(keys)
