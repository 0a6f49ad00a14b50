"""Rotary position embedding: tables and rotation, in the two-halves layout of transformers' checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from handlens_export.network.config import DecoderConfig


def frequencies(config: DecoderConfig) -> Tensor:
    """Angle per position of each pair of channels, float64 (head_dim / 2,)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    inverse = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    if scaling.kind == "linear":
        return inverse / scaling.factor
    # llama3: long wavelengths are divided by the factor, short ones kept, those between are blended.
    wavelength = 2 * math.pi / inverse
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((scaling.original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return inverse / scaling.factor * (1 - blend) + inverse * blend


def tables(config: DecoderConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions 0..positions-1, each float32 (positions, head_dim / 2)."""
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies(config)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (1, t, heads, head_dim) by the tables' rows for its positions (t, head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # (t, 1, head_dim / 2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
