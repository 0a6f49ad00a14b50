"""Bytes that one decode step reads: packed weights with their scales, and the keys and values of what came before."""

from __future__ import annotations

from handlens_runtime.manifest import BackendName, Manifest, PartQuantization

ONNX_BLOCK = 128
"""Columns that share a scale in an ONNX program where the grid has one scale per row."""
FLOAT_BYTES = 4
BFLOAT16_BYTES = 2
"""XNNPACK keeps the scales of groups in bfloat16."""


def weight_bytes(manifest: Manifest, backend: BackendName) -> int:
    """Weights and scales of layers and head, in the backend's own format; the embedding is looked up, not read.

    From the manifest's sums per part: matrices that got another format than their part's count as if they had its own
    scales, which is off by less than 2 % on the checkpoints compared.
    """
    parts = manifest.quantization.parts
    return sum(_stored(part, backend) for name, part in parts.items() if name in ("decoder", "head"))


def cache_bytes(manifest: Manifest, backend: BackendName) -> int:
    """The whole key-value cache, as the manifest says."""
    memory = manifest.memory
    return memory.backends[backend].kv_cache if backend in memory.backends else memory.kv_cache


def step_bytes(weights: int, row: float, depth: float, steps: int) -> float:
    """Mean bytes a step over `steps` steps from `depth` on; `row` is one token's keys and values, all layers."""
    return weights + row * (depth + (steps + 1) / 2)


def _stored(part: PartQuantization, backend: BackendName) -> int:
    if part.bits == 32:
        return part.bytes
    if backend == "executorch" and part.group is not None:
        return part.bytes - part.parameters // part.group * (FLOAT_BYTES - BFLOAT16_BYTES)
    if backend == "onnx" and part.group is None:
        return part.parameters * part.bits // 8 + part.parameters // ONNX_BLOCK * FLOAT_BYTES
    return part.bytes
