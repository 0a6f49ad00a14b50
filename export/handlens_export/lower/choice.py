"""ZipVL's choice of a prompt's tokens inside a program, on operators that ONNX Runtime and ExecuTorch both have: what
`network.zipvl` chooses, the sums in float32.

Sorting gives how many: the scores' running sum says after how many of them tau is reached, and the normalized score in
that place is the least that a chosen token has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handlens_export.network.zipvl import OTHERS, RECENT, inside_stretches

HIDDEN = -1e9
"""Added to the score of a later token."""
LARGEST = 1e9
"""The last token's score, which is always chosen."""


class Choice(nn.Module):
    """Which tokens of a prompt of more than RECENT + OTHERS one layer keeps."""

    inside: Tensor
    places: Tensor

    def __init__(self, heads: int, kv_heads: int, scale: float, causal: bool, context: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.scale, self.causal = heads, kv_heads, scale, causal
        self.register_buffer("inside", inside_stretches())
        self.register_buffer("places", torch.arange(context))

    def forward(self, q: Tensor, k: Tensor, tau: Tensor) -> Tensor:
        """q (1, t, heads, d) and k (1, t, kv_heads, d), rotated, and tau (1,) -> (t,), true where a token is chosen."""
        t, probes = q.shape[1], RECENT + OTHERS
        places = self.places.narrow(0, 0, t)  # a slice would ask whether t is less
        others = (self.inside * (t - RECENT) / OTHERS).long()
        rows = torch.cat((others, self.places[:RECENT] + (t - RECENT)))
        asked = (q[0].index_select(0, rows) * self.scale).transpose(0, 1).reshape(self.kv_heads, -1, q.shape[3])
        scores = torch.matmul(asked, k[0].permute(1, 2, 0)).view(self.heads, probes, t)
        later = places[None] > rows[:, None]  # (probes, t)
        if self.causal:
            scores = scores + later.float() * HIDDEN
        accumulated = torch.softmax(scores, -1).sum((0, 1))
        falling = torch.topk(accumulated, t).values.cumsum(0)
        enough = (falling < tau * accumulated.sum()).sum()
        normalized = accumulated / (~later).float().sum(0) if self.causal else accumulated
        normalized = torch.where(places == t - 1, LARGEST, normalized)
        least = torch.topk(normalized, t).values.index_select(0, enough.clamp(max=t - 1).reshape(1))
        return normalized >= least


def all_kept(q: Tensor, k: Tensor, tau: Tensor) -> Tensor:
    """The same where nothing is left out."""
    return torch.ones(q.shape[1], dtype=torch.bool)
