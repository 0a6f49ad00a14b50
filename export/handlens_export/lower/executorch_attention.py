"""Cached attention for ExecuTorch: two products and a softmax that XNNPACK takes, around a cache inside the program.

    q, k, v ─rotate─┬─ q, rows of one key head together ──────────▶ q·K ─▶ + mask ─▶ softmax ─▶ ·V ─▶ rows again
                    └─ k, v ─update_cache─▶ cache ─first n tokens─▶ K ───────────────────────────▶ V

Query heads that share a key head are rows of one matrix, so keys and values are read once for all of them. The cache
lies as the products read it: keys channel by channel, values token by token, each head on its own. Why not ExecuTorch's
own `custom_sdpa` and `custom_quantized_sdpa`: LOG.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import executorch.kernels.quantized  # noqa: F401  registers dequantize_per_tensor's out variant
import torch
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack.partition.config import xnnpack_config
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers update_cache
from torch import Tensor

from handlens_export.network.attention import CachedAttention, Step
from handlens_export.network.config import DecoderConfig
from handlens_export.network.rope import rotate

decomposed = torch.ops.quantized_decomposed

HIDDEN = -1e9
"""Added to the score of a later token. Finite: XNNPACK would make it from a product, in which infinity gives NaN."""


def causal_mask(positions: Tensor, position: int, t: int, group: int) -> Tensor:
    """(t * group, position + t): 0 where a row may look, HIDDEN behind it; one row per token and head of a group.

    `positions`: float32 (context,), 0, 1, 2, …: a comparison would stay outside XNNPACK, a difference does not.
    """
    rows = (positions.narrow(0, position, t)[:, None] * torch.ones(1, group)).reshape(t * group, 1)
    return torch.clamp(positions.narrow(0, 0, position + t)[None] - rows, 0.0, 1.0) * HIDDEN


class Seen(NamedTuple):
    """Keys and values of the n tokens up to now, in float, and what they are to be multiplied with."""

    keys: Tensor
    """(kv_heads, head_dim, n)."""
    values: Tensor
    """(kv_heads, n, head_dim)."""
    key_scales: Tensor | None = None
    """(kv_heads, 1, n); they multiply the scores, which are fewer than the channels of keys."""
    value_scales: Tensor | None = None
    """(kv_heads, 1, n); they multiply the softmax's weights."""


class FloatCache(CachedAttention):
    """Over float keys (kv_heads * head_dim, context, 1, 1) and values (kv_heads, context, 1, head_dim)."""

    key_cache: Tensor
    value_cache: Tensor
    dtype = torch.float32

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__(config)
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        # update_cache writes at a position of the second dimension, in each entry of the first.
        self.register_buffer("key_cache", torch.zeros(self.kv_heads * self.head_dim, context, 1, 1, dtype=self.dtype))
        self.register_buffer("value_cache", torch.zeros(self.kv_heads, context, 1, self.head_dim, dtype=self.dtype))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As `CachedAttention.forward`. In a trace, `step.extra` is the causal mask, None where all is seen."""
        if not torch.compiler.is_exporting():
            return super().forward(q, k, v, step)
        return self.attended(rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin), v, step.position, step.extra)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, position: int, mask: Tensor | None) -> Tensor:
        """In a trace, as `forward`, q and k rotated: they go into the cache from `position` on."""
        seen = self._update(k[0], v[0], position)
        t, group = q.shape[1], self.heads // self.kv_heads
        rows = (q * self.scale).view(t, self.kv_heads, group, self.head_dim).transpose(0, 1)
        scores = torch.bmm(rows.reshape(self.kv_heads, t * group, self.head_dim), seen.keys)
        scores = scores if seen.key_scales is None else scores * seen.key_scales
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = weights if seen.value_scales is None else weights * seen.value_scales
        out = torch.bmm(weights, seen.values).view(self.kv_heads, t, group, self.head_dim)
        return out.transpose(0, 1).reshape(1, t, self.heads * self.head_dim)

    def _update(self, k: Tensor, v: Tensor, position: int) -> Seen:
        """Write k and v, each (t, kv_heads, head_dim)."""
        torch.ops.llama.update_cache(by_channel(k), self.key_cache, position)
        torch.ops.llama.update_cache(by_token(v), self.value_cache, position)
        return self._seen(self.key_cache, self.value_cache, position + k.shape[0])

    def _seen(self, keys: Tensor, values: Tensor, n: int) -> Seen:
        """The first n tokens of two caches, shaped for the products."""
        keys = keys.narrow(1, 0, n).view(self.kv_heads, self.head_dim, n)
        return Seen(keys, values.narrow(1, 0, n).view(self.kv_heads, n, self.head_dim))


class Int8Cache(FloatCache):
    """Over int8 keys and values, with a float scale per token and head in caches of their own; q stays in float."""

    key_scales: Tensor
    value_scales: Tensor
    dtype = torch.int8

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__(config, context)
        for part in ("key", "value"):
            self.register_buffer(f"{part}_scales", torch.ones(self.kv_heads, context, 1, 1))

    def stored(self, x: Tensor) -> Tensor:
        """On the grid of its token and head."""
        scales = scales_per_token(x)
        return floats(whole(x / scales)) * scales

    def _update(self, k: Tensor, v: Tensor, position: int) -> Seen:
        n, scales = position + k.shape[0], []
        for x, cache in ((k, self.key_scales), (v, self.value_scales)):
            scales.append(scales_per_token(x))
            torch.ops.llama.update_cache(by_token(scales[-1]), cache, position)
        # Moved about in float, which XNNPACK does, and rounded last.
        torch.ops.llama.update_cache(whole(by_channel(k / scales[0])), self.key_cache, position)
        torch.ops.llama.update_cache(whole(by_token(v / scales[1])), self.value_cache, position)
        seen = self._seen(self.key_cache, self.value_cache, n)
        key_scales, value_scales = (
            cache.narrow(1, 0, n).view(self.kv_heads, 1, n) for cache in (self.key_scales, self.value_scales)
        )
        return Seen(floats(seen.keys), floats(seen.values), key_scales, value_scales)


def by_channel(x: Tensor) -> Tensor:
    """(t, kv_heads, d) -> (kv_heads * d, t, 1, 1)."""
    return x.permute(1, 2, 0).reshape(-1, x.shape[0], 1, 1)


def by_token(x: Tensor) -> Tensor:
    """(t, kv_heads, d) -> (kv_heads, t, 1, d)."""
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0], 1, x.shape[2])


def scales_per_token(x: Tensor) -> Tensor:
    """Scales (…, 1) that bring x (…, d) to -127 to 127. Zeros get one that is not zero."""
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-9) * (1 / 127)


def whole(x: Tensor) -> Tensor:
    """The nearest int8, by an operator that XNNPACK takes."""
    result: Tensor = decomposed.quantize_per_tensor(x, 1.0, 0, -128, 127, torch.int8)
    return result


def floats(x: Tensor) -> Tensor:
    """int8 as float32. Outside XNNPACK: `lengths_delegated`."""
    result: Tensor = decomposed.dequantize_per_tensor(x, 1.0, 0, -128, 127, torch.int8)
    return result


@contextmanager
def lengths_delegated() -> Iterator[None]:
    """While the block runs, XNNPACK's exporter takes nodes over the first n tokens of a cache, and over chosen tokens.

    It refuses every tensor with a length that is read from an input, as n is, since it cannot tell that the length is
    not zero; and asks whether such a tensor's channels come last, which they never do here. XNNPACK itself is given all
    lengths at each run; here n is at least 1. Left outside as before are those that turn int8 into float: executorch
    1.5.1's XNNPACK gives wrong numbers there once n outgrows its first run's.
    """
    refused, channels_last = xnnpack_config.has_free_unbacked_symbols, ChannelsLastTaggedReshapePass._is_nhwc_tensor
    xnnpack_config.has_free_unbacked_symbols = lambda value: value.dtype == torch.int8 and refused(value)
    ChannelsLastTaggedReshapePass._is_nhwc_tensor = staticmethod(
        lambda value: not refused(value) and channels_last(value)
    )
    try:
        yield
    finally:
        xnnpack_config.has_free_unbacked_symbols = refused
        ChannelsLastTaggedReshapePass._is_nhwc_tensor = staticmethod(channels_last)
