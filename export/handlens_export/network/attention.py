"""Cached attention in float: the leaf that a backend replaces before `torch.export`.

A leaf takes this step's q, k and v, not yet rotated, and a `Step`. Where the cache lives, in what format, and which
kernel attends, is the leaf's business; the decoder around it never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens_export.network.config import DecoderConfig
from handlens_export.network.rope import rotate


@dataclass(frozen=True)
class Step:
    """What one decoder pass tells its attention leaves."""

    position: Any
    """Position of the first row: an int in eager, a symbolic int or a tensor in a trace."""
    cos: Tensor
    """(t, head_dim / 2) for these rows' positions."""
    sin: Tensor
    prompt: bool = False
    """Whether the rows are all of a prompt, of which sparse attention (`zipvl`) may leave some out."""
    extra: Any = None
    """For the backend's own leaves: past buffers, lengths."""


class CachedAttention(nn.Module):
    """Plain attention over a cache that grows; the definition every other leaf is compared with."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.scale = config.attention_scale if config.attention_scale is not None else config.head_dim**-0.5
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """q (1, t, heads, d), k and v (1, t, kv_heads, d) -> (1, t, heads * d); rows see the cache before them."""
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        k, v = self.stored(k), self.stored(v)
        if self.keys is not None and self.values is not None and step.position:
            k = torch.cat((self.keys[:, : step.position], k), dim=1)
            v = torch.cat((self.values[:, : step.position], v), dim=1)
        self.keys, self.values = k, v
        return attend(q, k, v, self.causal, self.scale)

    def stored(self, x: Tensor) -> Tensor:
        """Rotated keys, or values, (1, t, kv_heads, d) as the cache holds them: here in float."""
        return x


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention of q (1, t, heads, d) over k, v (1, s, kv_heads, d), q's rows being the last t of s positions."""
    t, s = q.shape[1], k.shape[1]
    mask = torch.ones(t, s, dtype=torch.bool).tril(s - t) if causal and t > 1 else None
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)
