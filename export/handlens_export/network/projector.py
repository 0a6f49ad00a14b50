"""From patch features to rows the decoder can read: one class per published design."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from handlens_export.network.config import ProjectorConfig
from handlens_export.network.layers import ACTIVATIONS


def merge_patches(features: Tensor, factor: int) -> Tensor:
    """Concatenate factor x factor neighbours, row by row.

    (n, grid * grid, width) -> (n, ceil(grid / factor)**2, factor * factor * width). A grid that the factor does not
    divide is padded with zeros at the right and the bottom (27 -> 28).
    """
    n, patches, width = features.shape
    grid = round(patches**0.5)
    x = features.view(n, grid, grid, width)
    pad = -grid % factor
    if pad:
        x = F.pad(x, (0, 0, 0, pad, 0, pad))
    side = (grid + pad) // factor
    x = x.view(n, side, factor, side, factor, width).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, side * side, factor * factor * width)


class DownsampleMLP(nn.Module):
    """BlueLM-V-3B, sections 3.1 and 3.3: the 2x2 token downsampler (VILA's), then a two-layer MLP."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.factor
        self.downsampler = nn.Linear(config.factor**2 * config.vision_width, config.vision_width)
        self.fc1 = nn.Linear(config.vision_width, config.width)
        self.fc2 = nn.Linear(config.width, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, features: Tensor) -> Tensor:
        """(n, patches, vision_width) -> (n, tokens, width)."""
        merged = self.downsampler(merge_patches(features, self.factor))
        out: Tensor = self.fc2(self.activation(self.fc1(merged)))
        return out


class PixelShuffle(nn.Module):
    """Idefics3's and SmolVLM's connector: merge factor x factor patches, one linear without bias."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.factor
        self.proj = nn.Linear(config.factor**2 * config.vision_width, config.width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, patches, vision_width) -> (n, tokens, width)."""
        out: Tensor = self.proj(merge_patches(features, self.factor))
        return out


class LinearProjector(nn.Module):
    """PaliGemma's: one linear, a token per patch."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision_width, config.width)

    def forward(self, features: Tensor) -> Tensor:
        """(n, patches, vision_width) -> (n, patches, width)."""
        out: Tensor = self.linear(features)
        return out


PROJECTORS: dict[str, type[nn.Module]] = {
    "downsample_mlp": DownsampleMLP,
    "pixel_shuffle": PixelShuffle,
    "linear": LinearProjector,
}
