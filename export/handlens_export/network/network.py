"""The whole network: encoder, projector, decoder, and the plain float forward that everything is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handlens_export.network.config import NetworkConfig
from handlens_export.network.decoder import Decoder
from handlens_export.network.projector import PROJECTORS
from handlens_export.network.vision import VisionEncoder


class Network(nn.Module):
    """One network for all families; `vision` and `projector` are None in a text-only one."""

    def __init__(self, config: NetworkConfig, context: int | None = None) -> None:
        """`context`: positions the rotary tables hold; the checkpoint's maximum where left out."""
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision) if config.vision else None
        self.projector = PROJECTORS[config.projector.kind](config.projector) if config.projector else None
        self.decoder = Decoder(config.decoder, context)

    def encode(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (n, 3, s, s) -> rows (n, tokens_per_tile, width) and the features before the projector."""
        if self.vision is None or self.projector is None:
            raise ValueError("a text-only network has no vision encoder")
        features: Tensor = self.vision(tiles)
        rows: Tensor = self.projector(features)
        return rows, features

    def logits(self, rows: Tensor, position: int = 0, prompt: bool = False) -> Tensor:
        """Rows (1, t, width) from `position` on -> logits of each, (1, t, vocab_size); `prompt` as in `Step`."""
        hidden = self.decoder(rows, self.decoder.eager_step(rows.shape[1], position, prompt))
        out: Tensor = self.decoder.head(hidden)
        return out

    @torch.no_grad()
    def forward(self, ids: Tensor, tiles: Tensor | None = None, image_token: int | None = None) -> Tensor:
        """Logits (1, t, vocab_size) of a whole prompt; each `image_token` in ids (1, t) takes the next image row."""
        rows = self.decoder.embedding(ids)
        if tiles is not None:
            image_rows = self.encode(tiles)[0].flatten(0, 1)
            assert image_token is not None
            places = ids.eq(image_token)
            assert int(places.sum()) == image_rows.shape[0]
            rows = rows.masked_scatter(places[..., None], image_rows)
        return self.logits(rows)
