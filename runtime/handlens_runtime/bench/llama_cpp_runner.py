"""llama.cpp as a runner, through the package llama-cpp-python: its defaults but for threads and context.

Its defaults are a float16 cache, flash attention where it has it, a memory-mapped file and passes of 512 tokens.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from importlib import metadata
from time import perf_counter
from typing import Any

import numpy as np

from handlens_runtime.bench.runner import FIRST_PROMPT, Opened, Vision
from handlens_runtime.errors import BackendError
from handlens_runtime.stats import peak_memory_bytes

PACKAGES = ("llama_cpp", "gguf")


def require() -> None:
    """Raise BackendError unless the extra `bench` is installed; looks for its packages without importing them."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"Comparing with llama.cpp needs {', '.join(missing)}, which this installation does not have; "
            "run pip install -e '.[bench]', which compiles it for some minutes."
        )


def open_llama_cpp(path: str, vocab_size: int, row_bytes: int, context: int, threads: int) -> tuple[Peer, Opened]:
    """Load a GGUF file and answer a first prompt. `row_bytes`: keys and values of one token. Raises BackendError."""
    library = importlib.import_module("llama_cpp")  # beforehand: loading is timed without it
    library.llama_log_set(_QUIET, ctypes.c_void_p(0))
    library.llama_backend_init()
    began = perf_counter()
    peer = Peer(library, path, vocab_size, context, threads)
    peer.prefill(min(FIRST_PROMPT, context))
    taken = perf_counter() - began
    name = f"llama.cpp (llama-cpp-python {metadata.version('llama-cpp-python')})"
    kv_bytes = row_bytes * int(library.llama_n_ctx(peer.context))
    return peer, Opened(name=name, threads=threads, load_s=taken, kv_bytes=kv_bytes, file=path)


class Peer:
    """A model and a context of llama.cpp (see `runner.Runner`)."""

    def __init__(self, library: Any, path: str, vocab_size: int, context: int, threads: int) -> None:
        self._library = library
        model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        if not model:
            raise BackendError(f"llama.cpp cannot load {path}; remove the file, and it is written again.")
        options = library.llama_context_default_params()
        options.n_ctx = context
        options.n_threads = options.n_threads_batch = threads
        self.context = library.llama_init_from_model(model, options)
        if not self.context:
            raise BackendError(
                f"llama.cpp has no room for a context of {context} tokens; ask for shorter --prompts and --depths."
            )
        self._pass = int(options.n_batch)
        """Most tokens that one call takes; llama.cpp cuts them to its own passes."""
        self._ids = np.random.default_rng(0).integers(0, vocab_size, context)
        self._position = 0

    def prefill(self, tokens: int) -> float:
        """Seconds of a prompt."""
        self._rewind(0)
        began = perf_counter()
        self._feed(tokens)
        return perf_counter() - began

    def decode(self, depth: int, tokens: int) -> float:
        """Seconds of `tokens` steps; the cache is brought to `depth` before."""
        self._rewind(min(depth, self._position))
        self._feed(depth - self._position)
        began = perf_counter()
        for _ in range(tokens):
            self._run(1)
        return perf_counter() - began

    def kept(self, depth: int) -> float:
        """All."""
        return 1.0

    def encode_tile(self) -> float:
        """Not measured: the file has no vision encoder."""
        raise BackendError("llama.cpp's file of the bundle's shape has no vision encoder; bench pictures without --vs.")

    def encode_picture(self, width: int, height: int) -> Vision:
        """Not measured: the file has no vision encoder."""
        raise BackendError("llama.cpp's file of the bundle's shape has no vision encoder; bench pictures without --vs.")

    def peak_memory_released(self) -> None:
        """Not measured: there is no encoder to release."""

    def peak_memory(self) -> int:
        """Of this process."""
        return peak_memory_bytes()

    def _rewind(self, position: int) -> None:
        memory = self._library.llama_get_memory(self.context)
        self._library.llama_memory_seq_rm(memory, 0, position, -1)
        self._position = position

    def _feed(self, tokens: int) -> None:
        end = self._position + tokens
        while self._position < end:
            self._run(min(self._pass, end - self._position))

    def _run(self, count: int) -> None:
        ids = self._ids[self._position : self._position + count].tolist()
        tokens = (self._library.llama_token * count)(*ids)
        failed = self._library.llama_decode(self.context, self._library.llama_batch_get_one(tokens, count))
        self._library.llama_synchronize(self.context)
        if failed:
            raise BackendError(
                f"llama.cpp failed at position {self._position} (code {failed}); ask for shorter prompts."
            )
        self._position += count


_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda _level, _text, _data: None)
"""Takes llama.cpp's log lines; kept here, for C calls it as long as the process lives."""
