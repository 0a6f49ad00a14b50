"""How long a pass takes on a device: the longer of its products and its reads. README.md derives it and judges it."""

from __future__ import annotations

from dataclasses import dataclass

from handlens_export.forecast.device import Device
from handlens_export.network.config import NetworkConfig


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
        decoder = self.config.decoder
        queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
        layer = decoder.width * (2 * queries + 2 * keys + 3 * decoder.mlp_width)
        attention = 2 * (start + tokens) * queries
        return 2 * (tokens * decoder.layers * (layer + attention) + decoder.width * decoder.vocab_size)


def vision_seconds(passes: Passes, device: Device, tiles: int) -> float:
    """Encoding `tiles` tiles, in batches."""
    seconds = 0.0
    for first in range(0, tiles, passes.tile_batch):
        batch = min(passes.tile_batch, tiles - first)
        products = batch * passes.tile_operations() / device.product_rate
        seconds += max(products, passes.vision_bytes / device.read_rate)
    return seconds


def prefill_seconds(passes: Passes, device: Device, tokens: int) -> float:
    """A prompt of `tokens` tokens into an empty cache, chunk by chunk; all at once where attention is not causal."""
    chunk = passes.chunk if passes.config.decoder.causal else tokens
    seconds = 0.0
    for start in range(0, tokens, chunk):
        rows = min(chunk, tokens - start)
        products = passes.prefill_operations(start, rows) / device.product_rate
        reads = (passes.step_bytes + (start + rows) * passes.row_bytes) / device.read_rate
        seconds += max(products, reads)
    return seconds


def tokens_per_second(passes: Passes, device: Device, position: int) -> float:
    """Decoding with `position` tokens in the cache: every weight and every cached row is read once a token."""
    return device.read_rate / (passes.step_bytes + position * passes.row_bytes)
