"""Sizes of the reader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of the encoder, the downsampler and the decoder."""

    tile: int = 224
    patch: int = 16
    vision_width: int = 256
    vision_layers: int = 6
    vision_heads: int = 4
    width: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 704
    context: int = 2048
    downsample: int = 2

    @property
    def patches(self) -> int:
        """Of a tile."""
        return (self.tile // self.patch) ** 2

    @property
    def tokens_per_tile(self) -> int:
        """Rows of the decoder that a tile becomes."""
        return (self.tile // self.patch // self.downsample) ** 2
