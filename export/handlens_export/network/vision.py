"""The vision encoder: SigLIP without its pooling head. Tiles of one fixed size in, a feature per patch out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handlens_export.network.config import VisionConfig
from handlens_export.network.layers import ACTIVATIONS


class VisionAttention(nn.Module):
    """Full self-attention over a tile's patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.width // config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, patches, width) -> the same."""
        n, patches, width = x.shape
        # Plain products over (n * heads) rather than scaled_dot_product_attention, whose decomposition guards against
        # rows that are masked out entirely; there are none here, and XNNPACK takes these whole.
        q, k, v = (
            p(x).view(n, patches, self.heads, self.head_dim).transpose(1, 2).reshape(-1, patches, self.head_dim)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = torch.bmm(q * self.head_dim**-0.5, k.transpose(1, 2)).softmax(dim=-1)  # (n * heads, patches, patches)
        out = (
            torch.bmm(scores, v).view(n, self.heads, patches, self.head_dim).transpose(1, 2).reshape(n, patches, width)
        )
        result: Tensor = self.out_proj(out)
        return result


class VisionMLP(nn.Module):
    """Two-layer feed-forward."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(n, patches, width) -> the same."""
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class VisionLayer(nn.Module):
    """Pre-norm block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = VisionAttention(config)
        self.mlp_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(n, patches, width) -> the same."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class VisionEncoder(nn.Module):
    """Patch embedding, positions, blocks, final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(config.grid**2, config.width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles (n, 3, image_size, image_size), normalized -> features (n, grid * grid, width), row by row."""
        x = self.patch_embedding(tiles).flatten(2).transpose(1, 2) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out
