"""The memory that a bundle needs on a device, from sizes alone: what the manifest says and `plan` predicts."""

from __future__ import annotations

from collections.abc import Mapping

from handlens_export.network.config import NetworkConfig
from handlens_export.quantize.formats import FLOAT_BYTES, ONNX_BLOCK, Part
from handlens_export.recipe import Recipe
from handlens_runtime.image_encoder import TILE_BATCH
from handlens_runtime.manifest import BackendMemory, BackendName, KVFormat, MemoryEstimate, PartQuantization

HEAD_DIM_MULTIPLE = 8
"""ONNX Runtime's cached attention refuses other head sizes; heads are padded with zeros, which change no score and no
output."""


def estimate(
    config: NetworkConfig, recipe: Recipe, context: int, max_chunk: int, parts: Mapping[Part, PartQuantization]
) -> MemoryEstimate:
    """Bytes while answering: all weights, the cache, and the largest activations of one decoder or encoder pass."""
    weights: dict[str, int] = {part: summary.bytes for part, summary in parts.items()}
    backends: dict[BackendName, BackendMemory] = {}
    for backend in recipe.backends:
        cache = kv_cache(config, backend, recipe.kv, context)
        if backend == "executorch":
            beside = activations(config, max_chunk, 1) + attention(config, max_chunk, context)
        else:
            linears = [summary for part, summary in parts.items() if part != "embedding"]
            beside = activations(config, max_chunk, TILE_BATCH) + sum(map(_sums, linears))
            if recipe.tau is not None:
                # The operator's scores of all rows over the whole buffer; those of the probes before it are fewer.
                beside += FLOAT_BYTES * config.decoder.heads * max_chunk * context
        backends[backend] = BackendMemory(kv_cache=cache, peak=sum(weights.values()) + cache + beside)
    return MemoryEstimate(
        weights=weights,
        kv_cache=max(memory.kv_cache for memory in backends.values()),
        peak=max(memory.peak for memory in backends.values()),
        backends=backends,
    )


def activations(config: NetworkConfig, max_chunk: int, tiles: int) -> int:
    """Float32, of the larger of one decoder pass of `max_chunk` rows and one encoder pass of `tiles` tiles."""
    decoder = config.decoder
    rows = 4 * (max_chunk * (4 * decoder.width + 3 * decoder.mlp_width) + decoder.vocab_size)
    if config.vision is None:
        return rows
    vision, patches = config.vision, config.vision.grid**2
    return max(rows, 4 * tiles * (patches * (4 * vision.width + vision.mlp_width) + vision.heads * patches**2))


def _sums(part: PartQuantization) -> int:
    """What ONNX Runtime keeps beside a part's matrices: each block's scale once more, laid out for the processor, and
    the sum of its weights (MatMulNBits at accuracy level 4). Measured for bluelm-v-3b: 0.6 GB beside 2.3 GB in all.
    """
    if part.bits == 32:
        return 0
    return 2 * FLOAT_BYTES * part.parameters // (part.group or ONNX_BLOCK)


def attention(config: NetworkConfig, max_chunk: int, context: int) -> int:
    """What one layer of an ExecuTorch decoder holds besides, with a full cache; layers take turns in it.

    Scores and the softmax's weights of every row, the causal mask, and keys and values in float. Measured with 2,048
    tokens and chunks of 128: 71 MB for 32 heads, 8 key heads of 80 (82 here), 25 MB for 9, 3 and 64 (25 here).
    """
    decoder = config.decoder
    group = decoder.heads // decoder.kv_heads
    rows = max_chunk * (2 * decoder.heads + group)
    return 4 * context * (rows + 2 * decoder.kv_heads * decoder.head_dim)


def kv_cache(config: NetworkConfig, backend: BackendName, kv: KVFormat, tokens: int) -> int:
    """Keys and values of `tokens` tokens as a backend keeps them."""
    decoder = config.decoder
    return 2 * decoder.layers * tokens * decoder.kv_heads * _cache_row(backend, kv, decoder.head_dim)


def _cache_row(backend: BackendName, kv: KVFormat, head_dim: int) -> int:
    """Bytes of one head's key or value of one token: ExecuTorch's int8 row has a float32 scale beside it,
    ONNX Runtime's static scales lie outside the cache.
    """
    if backend == "onnx":
        padded = head_dim + -head_dim % HEAD_DIM_MULTIPLE
        return padded if kv == "int8" else 4 * padded
    return head_dim + 4 if kv == "int8" else 4 * head_dim
