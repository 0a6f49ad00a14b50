"""ZipVL (arXiv 2410.08584) in plain torch: in each layer, a prompt's tokens that hold `tau` of attention attend to
one another, and are what the cache keeps. What programs choose is compared with `chosen` here.

    probes' q · all k ─softmax─▶ A ─columns summed──────────────▶ how many: the fewest that make up tau of the sum
                                 └─columns' means over the rows ─▶ which: as many, the largest, in their order
                                   that may see them

Probes are the last 64 rows and 64 others. Tokens that are not chosen get nothing from this layer's attention; the
residual stream carries them on, and the next layer chooses anew. The paper's second version drops them from the cache,
its first keeps them there at 2 bits. What the paper leaves open is here: heads are averaged before tokens are chosen;
the last token, which the answer is read from, is always chosen; and of a prompt behind an earlier one, its own tokens
are chosen, by what they attend to among themselves, and those kept before stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from handlens_export.network.attention import CachedAttention, Step, attend
from handlens_export.network.config import DecoderConfig
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.rope import rotate

RECENT, OTHERS = 64, 64
"""Probes: a prompt's last rows, and others before these (section 4.2)."""
HIGH_BITS, LOW_BITS = 8, 2
"""Of chosen tokens in the cache, and of the others where they are kept; the paper has 4 and 2."""
INTERVAL = 100
"""Tokens generated before those of them that matter less are brought to LOW_BITS (version 1)."""


@dataclass(frozen=True)
class ZipVL:
    """What is kept of a prompt."""

    tau: float = 0.975
    """Share of the attention that the chosen tokens hold at least; 1 keeps all."""
    rest: Literal["dropped", "low bits"] = "dropped"
    """The others' keys and values: the paper's version 2, or 1."""

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau is {self.tau}, but a share of the attention lies above 0 and is 1 at most")


def probes(t: int) -> Tensor:
    """Rows of a prompt of t that are asked what they attend to, in order: all of one that has no more than there are
    probes. The others than the last are one from each of as many equal stretches, always the same.
    """
    if t <= RECENT + OTHERS:
        return torch.arange(t)
    others = (inside_stretches() * ((t - RECENT) / OTHERS)).long()
    return torch.cat((others, torch.arange(t - RECENT, t)))


def inside_stretches() -> Tensor:
    """Where in each of OTHERS stretches of length 1 its probe lies, (OTHERS,)."""
    return torch.arange(OTHERS) + torch.rand(OTHERS, generator=torch.Generator().manual_seed(0))


def attention_of(q: Tensor, k: Tensor, rows: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention probabilities (probes, s), averaged over the heads, of `rows` of q (1, t, heads, d) over k
    (1, s, kv_heads, d), of which q's are the last t places.
    """
    s, heads = k.shape[1], q.shape[2]
    hidden = torch.arange(s) > rows[:, None] + s - q.shape[1]
    total = torch.zeros(len(rows), s)
    for head in range(heads):  # one at a time: all of a long prompt's would fill memory
        scores = q[0, rows, head] @ k[0, :, head * k.shape[2] // heads].T * scale
        total += (scores.masked_fill(hidden, float("-inf")) if causal else scores).softmax(-1)
    return total / heads


def choose(attention: Tensor, rows: Tensor, causal: bool, tau: float) -> Tensor:
    """A prompt's chosen tokens, places in order, from the attention (probes, t) of its `rows` on it (section 4.2)."""
    return pick(*tally(attention, rows, causal), tau)


def tally(attention: Tensor, rows: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """What each place gets of the attention (probes, s) from places `rows`, and how many of these see it, (s,) each."""
    s = attention.shape[1]
    seen = (rows[:, None] >= torch.arange(s)).sum(0) if causal else torch.full((s,), len(rows))
    return attention.double().sum(0), seen


def pick(accumulated: Tensor, seen: Tensor, tau: float, lost: float = 0.0) -> Tensor:
    """Accumulated scores say how many; scores normalized by how many probes see a token say which. `lost`: the sum of
    scores of which tau is to be held, beside those of the tokens that are here.
    """
    if tau >= 1:
        return torch.arange(len(accumulated))
    falling = accumulated.sort(descending=True).values.cumsum(0)
    enough = int((falling < tau * (falling[-1] + lost)).sum()) + 1
    return largest(accumulated, seen, min(enough, len(accumulated)))


def largest(accumulated: Tensor, seen: Tensor, count: int) -> Tensor:
    """Places of as many tokens whose normalized scores are the largest, in order, the last token among them."""
    normalized = accumulated / seen  # the last row is a probe, so every token is seen by one
    normalized[-1] = torch.inf
    return normalized.topk(count).indices.sort().values


def chosen(q: Tensor, k: Tensor, causal: bool, scale: float, tau: float) -> Tensor:
    """Places of the chosen tokens of a prompt, q (1, t, heads, d) and k (1, t, kv_heads, d), both rotated."""
    rows = probes(q.shape[1])
    return choose(attention_of(q, k, rows, causal, scale), rows, causal, tau)


class SparseAttention(CachedAttention):
    """Attention over a cache of the chosen tokens."""

    def __init__(self, config: DecoderConfig, sparsity: ZipVL) -> None:
        super().__init__(config)
        self.sparsity = sparsity
        self.kept: Tensor | None = None
        """Places of the last prompt's chosen tokens in it."""
        self._generated: list[Tensor] = []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As `CachedAttention.forward`. Of a prompt (`step.prompt`) the chosen rows attend, to those kept before and to
        each other, and the others get zeros; what is no prompt attends to all that is kept, and is kept.
        """
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        if not step.position or self.keys is None or self.values is None:
            self.keys, self.values, self._generated = k[:, :0], v[:, :0], []
        kept = self.chosen(q, k) if step.prompt else torch.arange(q.shape[1])
        k, v = self.stored(k), self.stored(v)
        keys, values = torch.cat((self.keys, k[:, kept]), 1), torch.cat((self.values, v[:, kept]), 1)
        out = q.new_zeros(1, q.shape[1], q.shape[2] * q.shape[3])
        out[:, kept] = attend(q[:, kept], keys, values, self.causal, self.scale)
        if step.prompt:
            self.kept, self._generated = kept, []  # queries of an earlier answer are not asked about this prompt
        if self.sparsity.rest == "dropped":
            self.keys, self.values = keys, values
        elif step.prompt:
            self.keys, self.values = (torch.cat((a, _mixed(b, kept)), 1) for a, b in ((self.keys, k), (self.values, v)))
        else:
            self.keys, self.values = keys, values
            self._recompress(q)
        return out

    def chosen(self, q: Tensor, k: Tensor) -> Tensor:
        """Places of a prompt's tokens that matter to it; q and k rotated."""
        return chosen(q, k, self.causal, self.scale, self.sparsity.tau)

    def _recompress(self, q: Tensor) -> None:
        """Every INTERVAL rows that were generated: those that matter less to them go to LOW_BITS, as a prompt's do."""
        self._generated.append(q)
        rows = torch.cat(self._generated, 1)
        if rows.shape[1] < INTERVAL:
            return
        assert self.keys is not None and self.values is not None
        t = rows.shape[1]
        kept, self._generated = self.chosen(rows, self.keys[:, -t:]), []
        self.keys, self.values = (
            torch.cat((cache[:, :-t], _mixed(cache[:, -t:], kept)), 1) for cache in (self.keys, self.values)
        )


def _mixed(x: Tensor, kept: Tensor) -> Tensor:
    """Keys or values (1, t, kv_heads, d): `kept` at HIGH_BITS, the others at LOW_BITS."""
    out = _on_grid(x, LOW_BITS)
    out[:, kept] = _on_grid(x[:, kept], HIGH_BITS)
    return out


def _on_grid(x: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits steps from a token's and head's least value to its largest."""
    least = x.amin(-1, keepdim=True)
    size = ((x.amax(-1, keepdim=True) - least) / (2**bits - 1)).clamp_min(1e-9)
    out: Tensor = ((x - least) / size).round() * size + least
    return out


def swap(layers: nn.ModuleList, config: DecoderConfig, sparsity: ZipVL) -> list[SparseAttention]:
    """Put sparse attention into decoder layers, in place; the new leaves, layer by layer."""
    leaves = [SparseAttention(config, sparsity) for _ in layers]
    for layer, leaf in zip(layers, leaves, strict=True):
        cast(DecoderLayer, layer).attention.cached = leaf
    return leaves
