"""ZipVL where a prompt goes through in chunks, as a program of fixed shapes takes it: what a chunk may decide.

    chunk ─▶ what its probes attend to, in the cache and in itself ─▶ added to what earlier chunks' attended to there
          ─▶ tau of all attention so far says which are kept, of the cache too ─▶ the others are gone

So importance is accumulated over the chunks so far, and the last one decides once more over all that is left. It
departs from a choice over the whole prompt in three ways: an early chunk knows nothing of what later ones look for,
and what it dropped never comes back; its rows attend to what is kept by then; and each chunk has probes of its own, so
that the prompt's end counts no more than its middle. The attention that dropped tokens held counts as lost, or each
chunk would lose as much again. How far it departs is measured (`tests/verify/zipvl.py`); the programs choose over
whole prompts, which their shapes allow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handlens_export.network.attention import Step, attend
from handlens_export.network.config import DecoderConfig
from handlens_export.network.rope import rotate
from handlens_export.network.zipvl import SparseAttention, ZipVL, attention_of, pick, probes, tally


class ChunkedSparseAttention(SparseAttention):
    """Attention over a cache of the tokens that the chunks so far have chosen; of a first prompt, causal."""

    def __init__(self, config: DecoderConfig, sparsity: ZipVL) -> None:
        if sparsity.rest != "dropped":
            raise ValueError("chunks drop what they do not choose; there is no version that keeps it at low bits")
        super().__init__(config, sparsity)
        self._forget()

    def _forget(self) -> None:
        self._accumulated, self._seen = torch.zeros(0, dtype=torch.double), torch.zeros(0, dtype=torch.long)
        self._lost = 0.0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As `SparseAttention.forward`, of a chunk where `step.prompt`; `kept` are places in all chunks so far."""
        if not step.prompt:
            return super().forward(q, k, v, step)
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        if not step.position or self.keys is None or self.values is None or self.kept is None:
            self.keys, self.values, self.kept = k[:, :0], v[:, :0], torch.arange(0)
            self._forget()
        t, before = q.shape[1], len(self.kept)
        keys, values = torch.cat((self.keys, self.stored(k)), 1), torch.cat((self.values, self.stored(v)), 1)
        rows = probes(t)
        accumulated, seen = tally(attention_of(q, keys, rows, self.causal, self.scale), rows + before, self.causal)
        accumulated[:before] += self._accumulated
        seen[:before] += self._seen
        chosen = pick(accumulated, seen, self.sparsity.tau, self._lost)
        own = chosen[chosen >= before] - before
        self.keys, self.values = keys[:, chosen], values[:, chosen]
        self._lost += float(accumulated.sum() - accumulated[chosen].sum())
        self._accumulated, self._seen = accumulated[chosen], seen[chosen]
        self.kept = torch.cat((self.kept, torch.arange(t) + step.position))[chosen]
        out = q.new_zeros(1, t, q.shape[2] * q.shape[3])
        out[:, own] = attend(q[:, own], self.keys, self.values, self.causal, self.scale)
        return out
