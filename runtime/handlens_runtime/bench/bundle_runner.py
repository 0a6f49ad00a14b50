"""A bundle as a runner: the engine's own backend and image encoder, with the clock around them."""

from __future__ import annotations

import io
import os
from time import perf_counter
from typing import cast

import numpy as np
from PIL import Image

from handlens_runtime import backends
from handlens_runtime.backends.base import SparseBackend
from handlens_runtime.backends.onnx import THREADS_VARIABLE, physical_cores
from handlens_runtime.bench.runner import FIRST_PROMPT, Opened, Vision
from handlens_runtime.bundle import Bundle
from handlens_runtime.engine import Engine
from handlens_runtime.errors import OptionError
from handlens_runtime.image_encoder import ImageEncoder
from handlens_runtime.manifest import BackendName
from handlens_runtime.stats import Stats, peak_memory_bytes, restart_peak_memory
from handlens_runtime.stop import StopSignal


def open_bundle(path: str, backend: BackendName, threads: int, sparse: bool | None) -> tuple[BundleRunner, Opened]:
    """Load a bundle, threads set, and answer a first prompt. Raises BundleError, BackendError.

    `sparse`: whether a long prompt's tokens are chosen; None in a bundle that keeps all.
    """
    os.environ[THREADS_VARIABLE] = str(threads)
    backends.find(Bundle.load(path, verify=False), backend)  # imports it beforehand: loading is timed without that
    if backend == "executorch" and threads != physical_cores():
        _executorch_threads(threads)
    began = perf_counter()
    runner = BundleRunner(Engine(path, backend), sparse=bool(sparse))
    runner.prefill(min(FIRST_PROMPT, runner.longest))
    taken = perf_counter() - began
    kv_bytes = runner.engine.backend.kv_bytes
    name = backend if sparse is None else f"{backend}, {'sparse' if sparse else 'dense'}"
    return runner, Opened(name=name, threads=threads, load_s=taken, kv_bytes=kv_bytes, file=path)


class BundleRunner:
    """An engine, loaded (see `runner.Runner`)."""

    def __init__(self, engine: Engine, *, sparse: bool = False) -> None:
        """`sparse`: prompts as long as the manifest says are passes of their own, whose tokens are chosen."""
        self.engine = engine
        self._manifest = engine.bundle.manifest
        sizes = self._manifest.sizes
        self.longest = sizes.context if self._manifest.causal else min(sizes.context, sizes.max_chunk)
        self._chunk = min(sizes.chunk, sizes.max_chunk) if self._manifest.causal else self.longest
        self._ids = np.random.default_rng(0).integers(0, sizes.vocab_size, sizes.context)
        self._picture_rows = 0
        """Prompt rows of the last picture that was encoded."""
        self._filled = 0
        """Positions of the cache that hold something, from 0 on."""
        sparsity = self._manifest.sparsity if sparse else None
        self._least = sparsity.least_tokens if sparsity is not None and sparsity.leaves_out else None
        """Tokens of the shortest prompt whose tokens are chosen."""
        self._chosen = 0
        """Tokens of the prompt that was chosen from; a cache of them cannot be cut, as another can."""
        self._kept: dict[int, float] = {}

    def prefill(self, tokens: int) -> float:
        """Seconds of a prompt, in the engine's chunks."""
        began = perf_counter()
        self._fill(0, tokens)
        return perf_counter() - began

    def decode(self, depth: int, tokens: int) -> float:
        """Seconds of `tokens` steps; what the cache lacks below `depth` is filled before."""
        if self._sparse(depth) or self._chosen:
            if self._chosen != depth:
                self._fill(0, depth)
        elif self._filled < depth:
            self._fill(self._filled, depth)
        backend = self.engine.backend
        began = perf_counter()
        for position in range(depth, depth + tokens):
            backend.decode(backend.embed(self._ids[position : position + 1]), position)
        return perf_counter() - began

    def kept(self, depth: int) -> float:
        """Share of `depth` tokens that were cached."""
        return self._kept.get(depth, 1.0)

    def encode_tile(self) -> float:
        """Seconds of one tile."""
        rule = self._manifest.image
        assert rule is not None, "only bundles with an image rule are asked"
        tile = np.random.default_rng(0).uniform(-1, 1, (1, 3, rule.tile_size, rule.tile_size)).astype(np.float32)
        began = perf_counter()
        self.engine.backend.encode(tile)
        return perf_counter() - began

    def encode_picture(self, width: int, height: int) -> Vision:
        """A picture of noise, in a JPEG as a phone keeps it."""
        rule = self._manifest.image
        assert rule is not None, "only bundles with an image rule are asked"
        stats = Stats()
        encoder = ImageEncoder(self.engine.backend, rule, self._manifest.sizes.width, 0)
        picture = encoder.look(_jpeg(width, height), stats)
        encoder.embeddings(picture.digest, StopSignal(), stats)
        self._picture_rows = stats.tiles * rule.tokens_per_tile
        return Vision(tiles=stats.tiles, image_decode_s=stats.image_decode_s, encode_s=stats.encode_s)

    def peak_memory_released(self) -> int | None:
        """Of this process, from the encoder's release on: a prompt with the picture embedded, its last chunk decoded.

        All chunks before it would need no more memory, and minutes.
        """
        self.engine.backend.release_encoder()
        if not restart_peak_memory():
            return None
        backend, last = self.engine.backend, self._filled - 1
        ids = self._ids[:last].copy()
        ids[: self._picture_rows] = 0  # as the engine looks up a picture's rows
        for begin in range(0, last, self._chunk):
            backend.embed(ids[begin : begin + self._chunk])
        self._fill(0 if self._sparse(last) else max(0, last - self._chunk), last)
        self.decode(last, 1)
        return peak_memory_bytes()

    def peak_memory(self) -> int:
        """Of this process."""
        return peak_memory_bytes()

    def _fill(self, start: int, end: int) -> None:
        backend = self.engine.backend
        if self._sparse(end):
            _, kept = cast(SparseBackend, backend).decode_prompt(backend.embed(self._ids[:end]), 0)
            self._kept[end], self._chosen, self._filled = float(kept.mean()), end, end
            return
        for begin in range(start, end, self._chunk):
            backend.decode(backend.embed(self._ids[begin : min(begin + self._chunk, end)]), begin)
        self._chosen, self._filled = 0, end if self._chosen else max(self._filled, end)

    def _sparse(self, tokens: int) -> bool:
        return self._least is not None and tokens >= self._least


def _jpeg(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()


def _executorch_threads(threads: int) -> None:
    """ExecuTorch counts the cores itself; for another number its binding, which loads torch, makes the threads anew."""
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    if portable_lib._threadpool_get_thread_count() != threads:
        raise OptionError(
            f"ExecuTorch uses {portable_lib._threadpool_get_thread_count()} threads where {threads} were asked for; "
            "leave --threads out or choose that number."
        )
