"""A conversation to the rows of a torch network: the runtime's own prompt, embedded by the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor

from handlens_export.network.network import Network
from handlens_runtime.chat import Message
from handlens_runtime.images.decode import digest, open_image
from handlens_runtime.images.preprocess import Tiles, prepare
from handlens_runtime.manifest import Manifest
from handlens_runtime.prompt import Picture, Prompt, build
from handlens_runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt and its pictures' tiles, by digest."""

    prompt: Prompt
    tiles: dict[str, Tiles]


def prepare_prompt(
    manifest: Manifest,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    answer: bool = True,
    now: Callable[[], datetime] = datetime.now,
) -> PreparedPrompt:
    """Render, tokenize and tile, exactly as the engine does; with `answer` the assistant's turn begins at the end.

    Raises PromptError, ImageError.
    """
    pictures, tiles = [], {}
    for message in messages:
        for source in message.images:
            assert manifest.image is not None, "a text-only bundle takes no pictures"
            image = open_image(source, manifest.image.max_pixels, manifest.image.background)
            cut = prepare(image, manifest.image)
            tiles[digest(image)] = cut
            pictures.append(Picture(digest(image), cut.columns, cut.rows, len(cut.pixels)))
    return PreparedPrompt(build(manifest, tokenizer, messages, pictures, answer=answer, now=now), tiles)


@torch.no_grad()
def embed(
    network: Network, prepared: PreparedPrompt, most: int | None = None, encoded: dict[str, Tensor] | None = None
) -> Tensor:
    """Rows (1, t, width): token embeddings, and each picture's encoded rows in their places; the first `most` of them,
    for which no more tiles are encoded than they need. Pictures that `encoded` has, by digest, are not encoded again;
    those encoded are put there.
    """
    keys = prepared.prompt.keys[:most]
    needed: dict[str, int] = {}
    for key in keys:
        if isinstance(key, tuple):
            needed[key[0]] = max(needed.get(key[0], 0), key[1] + 1)
    per_tile = network.config.tokens_per_tile
    encoded = {} if encoded is None else encoded
    for picture, count in needed.items():
        if picture in encoded and len(encoded[picture]) >= count:
            continue
        # One tile at a time: the encoder's activations for many are what fills memory.
        tiles = prepared.tiles[picture].pixels[: -(-count // per_tile)]
        encoded[picture] = torch.cat([network.encode(torch.from_numpy(tile[None]))[0][0] for tile in tiles])
    ids = torch.tensor([[0 if isinstance(key, tuple) else key for key in keys]])
    rows: Tensor = network.decoder.embedding(ids).clone()
    for index, key in enumerate(keys):
        if isinstance(key, tuple):
            rows[0, index] = encoded[key[0]][key[1]]
    return rows
