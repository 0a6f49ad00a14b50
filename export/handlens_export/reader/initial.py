"""First weights that spare an encoder of this size its longest plateau, in which it learns what is beside what."""

from __future__ import annotations

import torch
from torch import Tensor

from handlens_export.reader.model import Reader

SPREAD = 0.5
"""Standard deviation of each feature of a patch, and size of a position's waves."""
LIKENESS = 0.8


@torch.no_grad()
def begin(reader: Reader, tiles: Tensor) -> None:
    """Set the encoder's first weights, in place; `tiles` (n, 3, tile, tile) are some of what it will see.

    Patches: the principal components of the tiles' own patches, each at the same spread. Positions: sines and cosines
    of x and y (Vaswani et al., 2017, in two dimensions), so that near patches are alike. Queries and keys: the same
    projection, so that attention looks at what is alike, which is what is near (Trockman and Kolter, 2023, "Mimetic
    initialization of self-attention layers").
    """
    encoder = reader.vision_tower
    embeddings = encoder.embeddings
    weight = embeddings.patch_embedding.weight
    weight.copy_(_components(tiles, weight.shape[-1], weight.shape[0]).view_as(weight))
    table = embeddings.position_embedding.weight
    table.copy_(_waves(round(len(table) ** 0.5), table.shape[1]) * SPREAD)
    for layer in encoder.encoder.layers:
        attention = layer.self_attn
        rows = attention.q_proj.weight.shape[0] // attention.num_heads
        for head in range(attention.num_heads):
            at = slice(head * rows, (head + 1) * rows)
            shared = torch.linalg.qr(torch.randn(table.shape[1], rows)).Q.T.to(table.device) * LIKENESS
            attention.q_proj.weight[at] = shared + 0.02 * torch.randn_like(shared)
            attention.k_proj.weight[at] = shared + 0.02 * torch.randn_like(shared)


def _components(tiles: Tensor, patch: int, count: int) -> Tensor:
    """(count, 3 * patch * patch): projections of a patch onto its principal components, whitened."""
    patches = tiles.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    kept = values[-count:].clamp_min(values[-1] * 1e-6)
    out: Tensor = (vectors[:, -count:] / kept.sqrt() * SPREAD).T
    return out


def _waves(side: int, width: int) -> Tensor:
    """(side * side, width)."""
    at = torch.arange(side, dtype=torch.float32)
    rates = torch.pi / 2 * torch.logspace(0, -1.5, width // 4)
    angles = at[:, None] * rates  # (side, width / 4)
    one = torch.cat((angles.sin(), angles.cos()), -1)
    across = one[None].expand(side, side, -1)
    down = one[:, None].expand(side, side, -1)
    return torch.cat((across, down), -1).flatten(0, 1)
