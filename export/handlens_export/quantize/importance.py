"""How much each token of a calibration prompt counts: RSQ (arXiv 2503.01820), section 3, as its code computes it.

Every strategy gives values from LEAST to 1 for a layer's input, the layer not quantized yet, then scaled to a mean of
1. Of the paper's, TokenFreq is left out, which counts the tokens' ids: pictures have none. So is its expansion of the
set by seven shifted copies of each prompt, for it takes eight times as long.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from handlens_export.network.attention import CachedAttention, Step
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.rope import rotate

Strategy = Literal["attention", "norm", "change", "apart", "first", "ends", "uniform"]
"""
attention  the attention that a token gets, over all heads and queries (AttnCon: the paper's own choice)
norm       the length of its row (ActNorm)
change     how little the layer changes it (ActDiff)
apart      its row's mean distance to the others' (TokenSim)
first      the first eighth of a prompt alone (FirstN)
ends       the first and the last of 32 parts alone (First&LastN)
uniform    all alike: plain GPTQ
"""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
LEAST = 0.005
"""Of an importance: the paper's scripts use this of its five."""


def importance(strategy: Strategy, layer: DecoderLayer, rows: Tensor, step: Step) -> Tensor:
    """Rows (1, t, width) that a layer gets -> (t,), with a mean of 1."""
    if strategy == "uniform":
        return torch.ones(rows.shape[1])
    found = _raw(strategy, layer, rows, step)
    spread = found.max() - found.min()
    scaled = (found - found.min()) / spread * (1 - LEAST) + LEAST if spread > 0 else torch.ones_like(found)
    return scaled / scaled.mean()


def _raw(strategy: Strategy, layer: DecoderLayer, rows: Tensor, step: Step) -> Tensor:
    t = rows.shape[1]
    places = torch.arange(t)
    match strategy:
        case "attention":
            return _attention(layer, rows, step)
        case "norm":
            return _length(rows[0])
        case "change":
            return -_length((layer(rows, step) - rows)[0])
        case "apart":
            return torch.cdist(rows[0], rows[0]).mean(1)
        case "ends":
            part = max(1, t // 32)
            return ((places < part) | (places >= t - part)).float()
        case _:
            return (places < max(1, t // 8)).float()


def _length(rows: Tensor) -> Tensor:
    out: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return out


def _attention(layer: DecoderLayer, rows: Tensor, step: Step) -> Tensor:
    """The sum over heads and queries of the attention probabilities on each token."""
    attention, t = layer.attention, rows.shape[1]
    assert isinstance(attention.cached, CachedAttention)
    x = layer.attention_norm(rows)
    q = rotate(attention.q_proj(x).view(1, t, attention.heads, attention.head_dim), step.cos, step.sin)
    k = rotate(attention.k_proj(x).view(1, t, attention.kv_heads, attention.head_dim), step.cos, step.sin)
    k = k.repeat_interleave(attention.heads // attention.kv_heads, dim=2)
    hidden = torch.ones(t, t, dtype=torch.bool).triu(1) if attention.cached.causal else None
    total = torch.zeros(t)
    for head in range(attention.heads):  # one at a time: all of a long prompt's would fill memory
        scores = q[0, :, head] @ k[0, :, head].T * attention.cached.scale
        total += (scores if hidden is None else scores.masked_fill(hidden, float("-inf"))).softmax(-1).sum(0)
    return total
