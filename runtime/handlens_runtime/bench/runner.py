"""The seam of the benchmark: what can be measured, in which process it may be, and nothing about who does it."""

from __future__ import annotations

from typing import Protocol, TypedDict

FIRST_PROMPT = 16
"""Tokens of the prompt whose first answer token ends loading."""


class Opened(TypedDict):
    """What a runner says of itself once it is loaded."""

    name: str
    """The backend's name, or the peer's name with its version."""
    threads: int
    load_s: float
    """From the call, imports done, to the logits of a first prompt of `FIRST_PROMPT` tokens."""
    kv_bytes: int
    """The key-value cache, as allocated."""
    file: str
    """What was loaded."""


class Vision(TypedDict):
    """One picture through the vision encoder."""

    tiles: int
    image_decode_s: float
    """Opening the picture and cutting it into tiles."""
    encode_s: float
    """Vision encoder and projector over all tiles."""


class Runner(Protocol):
    """A loaded network with a cache, given token ids of its own choice: speed does not depend on them."""

    def prefill(self, tokens: int) -> float:
        """Seconds of a prompt of that many tokens, from an empty cache."""

    def decode(self, depth: int, tokens: int) -> float:
        """Seconds of `tokens` steps of one token, the first with `depth` tokens in the cache; no sampling."""

    def kept(self, depth: int) -> float:
        """Share of a prompt of `depth` tokens that the caches held when it last ran, mean of the layers."""

    def encode_tile(self) -> float:
        """Seconds of one tile through vision encoder and projector."""

    def encode_picture(self, width: int, height: int) -> Vision:
        """A picture of that many pixels, as the engine encodes it."""

    def peak_memory_released(self) -> int | None:
        """Most resident bytes at the end of the cache, with the vision encoder's memory given back.

        Asked after the longest prompt and a picture. None where the system cannot tell.
        """

    def peak_memory(self) -> int:
        """Most resident bytes that the runner's process had so far."""
