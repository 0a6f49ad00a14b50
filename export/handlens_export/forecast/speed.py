"""How long a pass takes on a device: the longer of its products and its reads. README.md derives it and judges it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from handlens_export.describe import LEAST_TOKENS
from handlens_export.forecast.device import Device
from handlens_export.network.config import NetworkConfig

PROBES = 128
"""Rows of a prompt by which its tokens are chosen (`network.zipvl`, which would load torch)."""


@dataclass(frozen=True)
class Passes:
    """What a network's passes ask of any device."""

    config: NetworkConfig
    step_bytes: int
    """Weights and scales that one decoder pass reads: layers and head. The embedding is looked up, not read."""
    vision_bytes: int
    """The same for one pass of encoder and projector."""
    row_bytes: int
    """Keys and values of one token, all layers."""
    chunk: int = 128
    """Prompt tokens a decoder pass."""
    tile_batch: int = 1
    """Tiles an encoder pass."""
    kept: float | None = None
    """Share of a prompt's tokens that each layer keeps, where layers choose them; None keeps all."""

    def tile_operations(self) -> int:
        """Operations (a multiplication with its addition is two) of one tile through encoder and projector."""
        vision, projector = self.config.vision, self.config.projector
        if vision is None or projector is None:
            return 0
        patches = vision.grid**2
        block = 4 * vision.width**2 + 2 * vision.width * vision.mlp_width
        embedding = 3 * vision.patch_size**2 * vision.width
        attention = 2 * patches * vision.width  # a row's scores and its mixture
        encoder = patches * (embedding + vision.layers * (block + attention))
        merged, width = projector.factor**2 * projector.vision_width, projector.width
        two_layers = merged * projector.vision_width + projector.vision_width * width + width**2
        rows = two_layers if projector.kind == "downsample_mlp" else merged * width
        return 2 * (encoder + self.config.tokens_per_tile * rows)

    def prefill_operations(self, start: int, tokens: int) -> int:
        """Operations of one decoder pass over `tokens` rows from position `start`; each row attends to all before."""
        return self._decoder_operations(tokens, 2 * tokens * (start + tokens))

    def sparse_prefill_operations(self, tokens: int) -> int:
        """Operations of the one pass over a prompt whose tokens are chosen: probes attend to all, kept rows to each
        other.
        """
        return self._decoder_operations(tokens, PROBES * tokens + 2 * self.rows_of(tokens) ** 2)

    def rows_of(self, prompt: int) -> int:
        """Rows that a prompt of so many tokens leaves in a layer's cache."""
        return ceil(self.kept * prompt) if self.kept is not None and self.chooses(prompt) else prompt

    def chooses(self, prompt: int) -> bool:
        """Whether a prompt of so many tokens is one of which layers keep a part."""
        return self.kept is not None and prompt >= LEAST_TOKENS

    def _decoder_operations(self, rows: int, products: int) -> int:
        """Of a pass over `rows`, each layer's attention taking so many products of rows as wide as its queries."""
        decoder = self.config.decoder
        queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
        layer = decoder.width * (2 * queries + 2 * keys + 3 * decoder.mlp_width)
        return 2 * (decoder.layers * (rows * layer + products * queries) + decoder.width * decoder.vocab_size)


def vision_seconds(passes: Passes, device: Device, tiles: int) -> float:
    """Encoding `tiles` tiles, in batches."""
    seconds = 0.0
    for first in range(0, tiles, passes.tile_batch):
        batch = min(passes.tile_batch, tiles - first)
        products = batch * passes.tile_operations() / device.product_rate
        seconds += max(products, passes.vision_bytes / device.read_rate)
    return seconds


def prefill_seconds(passes: Passes, device: Device, tokens: int) -> float:
    """A prompt of `tokens` tokens into an empty cache, chunk by chunk; all at once where attention is not causal, or
    where layers choose what they keep.
    """
    if passes.chooses(tokens):
        products = passes.sparse_prefill_operations(tokens) / device.product_rate
        return max(products, (passes.step_bytes + passes.rows_of(tokens) * passes.row_bytes) / device.read_rate)
    chunk = passes.chunk if passes.config.decoder.causal else tokens
    seconds = 0.0
    for start in range(0, tokens, chunk):
        rows = min(chunk, tokens - start)
        products = passes.prefill_operations(start, rows) / device.product_rate
        reads = (passes.step_bytes + (start + rows) * passes.row_bytes) / device.read_rate
        seconds += max(products, reads)
    return seconds


def tokens_per_second(passes: Passes, device: Device, prompt: int, answer: int = 0) -> float:
    """Decoding behind a prompt and so much of an answer: every weight and every cached row is read once a token."""
    return device.read_rate / (passes.step_bytes + (passes.rows_of(prompt) + answer) * passes.row_bytes)
