"""The bytes that a manifest promises are those that each backend allocates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.memory import activations, attention
from handlens_export.pipeline import export
from handlens_export.recipe import Recipe
from handlens_runtime.engine import Engine
from handlens_runtime.manifest import KVFormat, PartQuantization

PARTS = {"decoder": PartQuantization(bits=4, group=32, parameters=1000, bytes=600)}
ROWS = 2 * 2 * 100 * 2
"""Keys and values, layers, tokens, heads."""


@pytest.mark.parametrize(
    ("kv", "head_dim", "executorch", "onnx"),
    [("int8", 16, 16 + 4, 16), ("float", 16, 16 * 4, 16 * 4), ("int8", 20, 20 + 4, 24), ("float", 20, 20 * 4, 24 * 4)],
)
def test_each_backends_cache_has_rows_of_its_own(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, kv: KVFormat, head_dim: int, executorch: int, onnx: int
) -> None:
    recipe = Recipe(context=100, kv=kv)
    planned = plan(read(tiny_checkpoint("llama", tmp_path)), recipe)
    decoder = replace(planned.config.decoder, head_dim=head_dim)
    memory = describe(replace(planned, config=replace(planned.config, decoder=decoder)), recipe, PARTS).memory
    caches = {backend: needs.kv_cache for backend, needs in memory.backends.items()}
    assert caches == {"executorch": ROWS * executorch, "onnx": ROWS * onnx}
    assert memory.kv_cache == max(caches.values())
    peaks = {backend: needs.peak for backend, needs in memory.backends.items()}
    assert memory.peak == max(peaks.values()) > memory.kv_cache + 600
    # ExecuTorch's attention holds its scores, and keys and values in float, besides the cache; ONNX Runtime each
    # block's scale a second time, and a sum.
    beside = {backend: peaks[backend] - caches[backend] - 600 for backend in peaks}
    working = activations(planned.config, planned.max_chunk, 1)
    assert beside["onnx"] == working + 2 * 4 * 1000 // 32
    attending = attention(replace(planned.config, decoder=decoder), planned.max_chunk, 100)
    assert beside["executorch"] == working + attending


@pytest.mark.parametrize("kv", ["int8", "float"])
def test_onnx_allocates_what_the_manifest_says(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, kv: KVFormat
) -> None:
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint")
    manifest = export(checkpoint, tmp_path / "bundle", Recipe(backends=("onnx",), kv=kv, context=64))
    allocated = Engine(tmp_path / "bundle", "onnx").backend.kv_bytes
    assert allocated == manifest.memory.backends["onnx"].kv_cache == manifest.memory.kv_cache
    assert list(manifest.memory.backends) == ["onnx"]
