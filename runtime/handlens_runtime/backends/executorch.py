"""ExecuTorch behind the seam: the methods of one .pte, whose cache lives inside the program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlens_runtime import heap
from handlens_runtime.backends.base import Array, Backend, Rows
from handlens_runtime.backends.kept_rows import KeptRows
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import BackendError
from handlens_runtime.pte import open_program

logger = logging.getLogger(__name__)

LARGE_TABLE = 64_000_000
"""Bytes of an embedding table from which on its pages are given back: a system that holds the file in large pages maps
2 MB of it around each row that is looked up, so that a prompt brings all of the table into memory."""
ROWS_HELD = 16
"""Rows that are looked up before they are."""


def load(bundle: Bundle) -> Backend:
    """Load the bundle's .pte and its methods.

    Raises BackendError where the file cannot be loaded, lacks a method, or the bundle has no .pte.
    """
    return ExecuTorchBackend(bundle)


class ExecuTorchBackend:
    """A bundle's .pte, loaded (see `backends.base.Backend`)."""

    name = "executorch"

    def __init__(self, bundle: Bundle) -> None:
        graphs = bundle.manifest.backends.get("executorch")
        if graphs is None:
            raise BackendError(
                f"{bundle.path} has no executorch program; use --backend {next(iter(bundle.manifest.backends))}, or "
                "export the checkpoint again with --backend executorch."
            )
        self._sizes = bundle.manifest.sizes
        self._kv_format = bundle.manifest.quantization.kv
        self._decoder = str(graphs.decoder.method)
        self._embedding = str(graphs.embedding.method) if graphs.embedding else None
        self._vision = str(graphs.vision.method) if graphs.vision else None
        path = bundle.path / graphs.decoder.file
        entry = bundle.manifest.files.get(graphs.decoder.file)
        sha256 = None if entry is None else entry.sha256
        methods = [name for name in (self._decoder, self._embedding, self._vision) if name is not None]
        found: list[str] = []
        with _reported("load", f"{path} cannot be loaded by this executorch"):
            try:
                self._program = open_program(path, sha256, methods, found)
            except LookupError as lacking:
                raise BackendError(f"{path} lacks the method {lacking.args[0]}; export the checkpoint again.") from None
        table = bundle.manifest.quantization.parts.get("embedding")
        self._gives_back = self._embedding is not None and table is not None and table.bytes >= LARGE_TABLE
        self._looked_up = 0
        """Rows since pages of the table were given back."""
        self._sparsity = bundle.manifest.sparsity
        self._kept = KeptRows(self._sizes.layers) if self._sparsity else None
        self.warnings = tuple(found)
        for warning in found:
            logger.warning(warning)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the cache inside the program holds."""
        sizes = self._sizes
        rows = 2 * sizes.layers * sizes.context * sizes.kv_heads
        # int8 keeps a float32 scale beside each head's row.
        return rows * (sizes.head_dim + 4) if self._kv_format == "int8" else rows * sizes.head_dim * 4

    def encode(self, tiles: Array) -> tuple[Array, Array]:
        """tiles (n, 3, s, s) -> embeddings (n, tokens, width), features (n, patches, vision width)."""
        if self._vision is None:
            raise BackendError("This bundle is text-only and has no vision encoder; ask without an image.")
        # The program takes one tile per call, as ExecuTorch's own runner gives it.
        pairs = [self._run(self._vision, "vision encoder", [tile[None]]) for tile in tiles]
        return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])

    def release_encoder(self) -> None:
        """Its weights leave memory; so do the decoder's, whose next pass maps them again in a fraction of a second."""
        self._program.give_back()
        heap.trim()

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        """ids (t,) -> rows (t, width); the ids themselves where the program embeds inside."""
        if self._embedding is None:
            return ids.astype(np.int64)
        limit = min(self._sizes.max_chunk, ROWS_HELD) if self._gives_back else self._sizes.max_chunk
        rows = []
        for begin in range(0, len(ids), limit):
            part = ids[begin : begin + limit].astype(np.int64)
            rows.append(self._run(self._embedding, "token embedding", [part[None]])[0][0])
            self._looked_up += len(part)
            if self._gives_back and self._looked_up >= ROWS_HELD:
                self._program.give_back_file()
                self._looked_up = 0
        return np.concatenate(rows)

    def decode(self, rows: Rows, position: int) -> Array:
        """rows (t, width) or ids (t,) at positions position..position+t-1 -> logits of the last, (vocab_size,)."""
        logits: Array = self._decode(rows, position, tau=1.0)[0][0]
        return logits

    def decode_prompt(
        self, rows: Rows, position: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Array, NDArray[np.bool_]]:
        """The same of a whole prompt, of which each layer keeps what matters to it: also which rows, (layers, t).

        Does not look at `stopped`: ExecuTorch has no way to end a method's run.
        """
        assert self._sparsity is not None and self._kept is not None, "this bundle keeps all of a prompt"
        logits, marks = self._decode(rows, position, self._sparsity.tau)
        kept = marks > 0.5
        self._kept.note(position, kept)
        return logits[0], kept

    def _decode(self, rows: Rows, position: int, tau: float) -> list[Array]:
        if not 1 <= len(rows) <= self._sizes.max_chunk or not 0 <= position <= self._sizes.context - len(rows):
            raise BackendError(
                f"The decoder was given {len(rows)} rows at position {position}, but it takes 1 to "
                f"{self._sizes.max_chunk} at a time and {self._sizes.context} in all; shorten the conversation."
            )
        inputs = [rows[None], np.array([position], np.int64)]
        if self._kept is not None:
            inputs += [np.array([tau], np.float32), self._kept.at(position).astype(np.int64)]
        return self._run(self._decoder, "text decoder", inputs)

    def _run(self, method: str, part: str, inputs: Sequence[NDArray[Any]]) -> list[Array]:
        with _reported(part, f"The {part} failed"):
            return self._program.run(method, inputs)


@contextmanager
def _reported(part: str, found: str) -> Iterator[None]:
    """ExecuTorch raises RuntimeError for everything; its reason goes to the log, one sentence to the user."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        logger.debug("executorch: %s", part, exc_info=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackendError(f"{found} ({reason}); export or copy the bundle again.") from error
