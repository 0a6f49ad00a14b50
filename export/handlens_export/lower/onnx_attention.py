"""Cached attention as ONNX Runtime's GroupQueryAttention: the cache outside the program, int8 or float.

Measured on onnxruntime 1.32 (CPU), and what the eager forward repeats: keys are rotated, then this step's keys and
values are rounded into the cache with static scales, and attention reads the rounded ones, this step's own included;
queries and probabilities stay in float. Nothing depends on how a prompt is cut into steps, but where tokens are chosen.
`causal=0` attends to the whole cache up to the last row of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from handlens_export.lower.choice import Choice
from handlens_export.lower.onnx_leaves import Attributes
from handlens_export.memory import HEAD_DIM_MULTIPLE
from handlens_export.network.attention import CachedAttention, Step, attend
from handlens_export.network.decoder import Attention
from handlens_export.network.rope import rotate
from handlens_export.network.zipvl import ZipVL, chosen

ROTARY_MULTIPLE = 16
"""The operator rotates only heads of such a size; others are rotated before it."""
NO_TABLES = (None, None, None)
"""Of heads that are rotated before the operator."""


OPERATOR = "handlens::group_query_attention"
torch.library.define(
    OPERATOR,
    "(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor last, Tensor total, Tensor? cos, Tensor? sin, "
    "Tensor? positions, Tensor? k_scale, Tensor? v_scale, int heads, int kv_heads, float scale, bool causal) "
    "-> (Tensor, Tensor, Tensor)",
)


@torch.library.impl(OPERATOR, "CompositeImplicitAutograd")  # the trace of a branch of `torch.cond` needs a name for it
def _group_query_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    last: Tensor,
    total: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (1, t, heads * d), k and v (1, t, kv_heads * d), whole past buffers, the last row's place in them (1,) and the
    rows in them once these are in () -> what q's rows get, and the buffers.
    """
    attributes: Attributes = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": scale,
        "do_rotary": int(cos is not None),
        "causal": int(causal),
    }
    inputs = [q, k, v, keys, values, last, total, cos, sin, positions]
    if k_scale is not None:
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        inputs += [None, None, k_scale, v_scale]
    out, key, value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        attributes,
        dtypes=(torch.float32, keys.dtype, values.dtype),
        shapes=(q.shape, keys.shape, values.shape),
        version=1,
    )
    return out, key, value


@dataclass
class Cache:
    """What the decoder's trace hands its attention leaves, and what they hand back (`Step.extra`)."""

    past: list[tuple[Tensor, Tensor]]
    """Keys and values per layer, each (1, kv_heads, context, padded head_dim): whole buffers."""
    last: Tensor
    """int32 (1,): position of this step's last row."""
    total: Tensor
    """int32 (): rows in the cache once this step's are in."""
    cos: Tensor
    """(context, head_dim / 2)."""
    sin: Tensor
    positions: Tensor | None = None
    """int64 (1, t), where tokens are chosen: of this step's rows in the conversation."""
    tau: Tensor | None = None
    """float32 (1,), where tokens are chosen: 1 or more keeps all of this step's."""
    lengths: Tensor | None = None
    """int32 (layers,), where tokens are chosen: rows in each layer's cache before this step's."""
    present: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Filled by the leaves; ONNX Runtime writes them into the past buffers when both are bound to the same memory."""
    kept: list[Tensor] = field(default_factory=list)
    """Filled by the leaves where tokens are chosen: bool (t,), true for those kept."""


class GroupQueryAttention(nn.Module):
    """One layer's attention over its cache."""

    k_scale: Tensor | None
    v_scale: Tensor | None

    def __init__(
        self,
        attention: Attention,
        layer: int,
        context: int,
        kv_scales: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        sparsity: ZipVL | None = None,
    ) -> None:
        """`kv_scales`: int8 scales of keys and values, each (kv_heads, head_dim); None leaves the cache in float."""
        super().__init__()
        if not isinstance(attention.cached, CachedAttention):
            raise TypeError("the network's attention leaves have been swapped already")
        self.layer, self.context = layer, context
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.rotary = self.head_dim % ROTARY_MULTIPLE == 0
        self.causal, self.scale = attention.cached.causal, attention.cached.scale
        self.pad = -self.head_dim % HEAD_DIM_MULTIPLE
        self.sparsity = sparsity
        shape = (self.heads, self.kv_heads, self.scale, self.causal, context)
        self.choice = None if sparsity is None else Choice(*shape)
        for name, index in (("k_scale", 0), ("v_scale", 1)):
            scale = None if kv_scales is None else torch.from_numpy(np.ascontiguousarray(kv_scales[index]))
            padded = None if scale is None else F.pad(scale.float(), (0, self.pad), value=1.0)
            self.register_buffer(name, None if padded is None else padded[None, :, None])  # (1, kv_heads, 1, dim)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """Of keys and of values: (1, kv_heads, context, padded head_dim)."""
        return 1, self.kv_heads, self.context, self.head_dim + self.pad

    @property
    def cache_dtype(self) -> torch.dtype:
        """int8 where there are scales."""
        return torch.float32 if self.k_scale is None else torch.int8

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """q (1, t, heads, d), k and v (1, t, kv_heads, d), not rotated -> (1, t, heads * d)."""
        if torch.compiler.is_exporting():
            return self._operator(q, k, v, step)
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        kept = slice(None) if self.sparsity is None else self._kept(q, k, step)
        k, v = self._round(k, self.k_scale)[:, kept], self._round(v, self.v_scale)[:, kept]
        if self.keys is not None and self.values is not None and step.position:
            k = torch.cat((self.keys[:, : step.position], k), dim=1)  # of fewer, where rows were left out, all
            v = torch.cat((self.values[:, : step.position], v), dim=1)
        self.keys, self.values = k, v
        attended = attend(q[:, kept], k, v, self.causal, self.scale)
        if self.sparsity is None:
            return attended
        out = attended.new_zeros(1, q.shape[1], attended.shape[2])
        out[:, kept] = attended
        return out

    def _kept(self, q: Tensor, k: Tensor, step: Step) -> Tensor:
        """Of the eager forward, which goes back only where nothing was left out."""
        assert self.sparsity is not None
        whole = torch.arange(q.shape[1])
        return chosen(q, k, self.causal, self.scale, self.sparsity.tau) if step.prompt else whole

    def _round(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """x (1, t, kv_heads, d) on the cache's grid."""
        if scale is None:
            return x
        grid = scale[:, :, 0, : self.head_dim]  # (1, kv_heads, d)
        return (x / grid).round().clamp(-128, 127) * grid

    def _operator(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        cache: Cache = step.extra
        if self.choice is None:
            if not self.rotary:
                q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
            own = (cache.cos, cache.sin, None) if self.rotary else NO_TABLES
            out, *present = self._attended(q, k, v, cache.past[self.layer], cache.last, cache.total, own)
        else:
            assert cache.tau is not None and cache.lengths is not None and cache.positions is not None
            taken = (q, k, v, cache.past[self.layer], cache.lengths[self.layer], cache.tau)
            tables = (step.cos, step.sin), (cache.cos, cache.sin, cache.positions)
            out, kept, *present = torch.cond(cache.tau[0] < 1, self._of_chosen, self._of_all, (*taken, *tables))
            cache.kept.append(kept)
        cache.present.append((present[0], present[1]))
        return out

    def _of_chosen(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: tuple[Tensor, Tensor],
        length: Tensor,
        tau: Tensor,
        rotation: tuple[Tensor, Tensor],
        _: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, ...]:
        """Attention of the rows that are chosen, zeros for the others; which they are, (t,); the cache."""
        assert self.choice is not None
        # Of a first prompt the operator takes rows to be neighbours; what was chosen has gaps.
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        kept = self.choice(q, k, tau)
        places = torch.nonzero(kept)[:, 0]
        torch._check(places.shape[0] >= 1)  # type: ignore[no-untyped-call]
        torch._check(places.shape[0] <= q.shape[1])  # type: ignore[no-untyped-call]
        total = length + places.shape[0]
        last, total = (total - 1).reshape(1).to(torch.int32), total.to(torch.int32)
        q_kept, k_kept, v_kept = (x.index_select(1, places) for x in (q, k, v))
        out, key, value = self._attended(q_kept, k_kept, v_kept, past, last, total, NO_TABLES)
        return torch.zeros(1, q.shape[1], out.shape[2]).index_copy(1, places, out), kept, key, value

    def _of_all(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: tuple[Tensor, Tensor],
        length: Tensor,
        tau: Tensor,
        rotation: tuple[Tensor, Tensor],
        tables: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, ...]:
        """The same where nothing is left out, as of steps behind a prompt: next to nothing but the operator, for small
        ones between products cost a step more than a shorter cache gains.
        """
        if not self.rotary:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        total = (length + q.shape[1]).to(torch.int32)
        given = tables if self.rotary else NO_TABLES
        out, key, value = self._attended(q, k, v, past, (total - 1).reshape(1), total, given)
        return out, torch.ones(q.shape[1], dtype=torch.bool), key, value

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: tuple[Tensor, Tensor],
        last: Tensor,
        total: Tensor,
        tables: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`tables`: cosines, sines, and the rows' positions (1, t), by default their places in the cache."""
        q, k, v = (F.pad(x, (0, self.pad)).flatten(2) if self.pad else x.flatten(2) for x in (q, k, v))
        out, key, value = torch.ops.handlens.group_query_attention(
            *(q, k, v, *past, last, total, *tables, self.k_scale, self.v_scale),
            *(self.heads, self.kv_heads, self.scale, self.causal),
        )
        if self.pad:
            out = out.view(1, -1, self.heads, self.head_dim + self.pad)[..., : self.head_dim].flatten(2)
        return out, key, value
