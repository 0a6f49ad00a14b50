"""ZipVL in a .pte: each layer's cached attention over the tokens that it chose, the choice made inside the program.

    q, k, v ─rotate─▶ chosen? ─places─▶ q, k, v of those ─cached attention at this layer's length─▶ their rows
                         └──────────────running count────────────────────────────────────────────▶ and zeros between

ExecuTorch's kernels neither sort, nor give `nonzero`'s result a layout that other kernels take, nor write rows to
places: so `topk` sorts, `masked_select` finds the places, and rows come back by being looked up behind a row of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from handlens_export.lower.choice import Choice, all_kept
from handlens_export.lower.executorch_attention import FloatCache, causal_mask
from handlens_export.network.attention import Step
from handlens_export.network.config import DecoderConfig
from handlens_export.network.rope import rotate
from handlens_export.network.zipvl import SparseAttention, ZipVL


@dataclass
class Choosing:
    """What the decoder's trace hands its attention leaves, and what they hand on (`Step.extra`)."""

    tau: Tensor
    """float32 (1,): 1 or more keeps all of this step's."""
    lengths: Tensor
    """int64 (layers,): rows in each layer's cache before this step's."""
    positions: Tensor
    """float32 (context,): 0, 1, 2, …"""
    kept: Tensor
    """float32 (layers, t): 1 for the rows that a layer kept; each layer adds its own."""


class SparseCache(SparseAttention):
    """A dense leaf's cache, over the chosen tokens."""

    index: Tensor
    row: Tensor

    def __init__(self, config: DecoderConfig, dense: FloatCache, context: int, layer: int, sparsity: ZipVL) -> None:
        super().__init__(config, sparsity)
        self.dense, self.context, self.group = dense, context, config.heads // config.kv_heads
        self.choice = Choice(config.heads, config.kv_heads, self.scale, self.causal, context)
        # Tensors, not numbers: the layers are traced as three, and are alike but for these.
        self.register_buffer("index", torch.tensor([layer]))
        self.register_buffer("row", (torch.arange(config.layers) == layer).float()[:, None])

    def stored(self, x: Tensor) -> Tensor:
        """As the dense leaf's cache holds it."""
        return self.dense.stored(x)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As `SparseAttention.forward`. In a trace, `step.extra` is a `Choosing`."""
        if not torch.compiler.is_exporting():
            return super().forward(q, k, v, step)
        choosing: Choosing = step.extra
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        kept = torch.cond(choosing.tau[0] < 1, self.choice, all_kept, (q, k, choosing.tau))
        choosing.kept = choosing.kept + self.row * kept.float()[None]
        places = torch.masked_select(self.choice.places.narrow(0, 0, q.shape[1]), kept)
        n = places.shape[0]
        torch._check(n >= 1)  # type: ignore[no-untyped-call]
        torch._check(n <= q.shape[1])  # type: ignore[no-untyped-call]
        length = cast(int, choosing.lengths.index_select(0, self.index).item())
        torch._check(length >= 0)  # type: ignore[no-untyped-call]
        torch._check(length + n <= self.context)  # type: ignore[no-untyped-call]
        torch._check(length < self.context)  # type: ignore[no-untyped-call]
        mask = causal_mask(choosing.positions, length, n, self.group) if self.causal else None
        q, k, v = (x.index_select(1, places) for x in (q, k, v))
        out = self.dense.attended(q, k, v, length, mask)
        behind_zeros = torch.cat((torch.zeros(1, 1, out.shape[2]), out), 1)
        return behind_zeros.index_select(1, kept.long().cumsum(0) * kept)
