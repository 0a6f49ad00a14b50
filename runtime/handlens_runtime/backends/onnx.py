"""ONNX Runtime behind the seam: three sessions over memory-mapped weights, one cache shared by past and present."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from handlens_runtime import heap
from handlens_runtime.backends.base import Array, Backend, Rows
from handlens_runtime.backends.kept_rows import KeptRows
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import BackendError, OptionError
from handlens_runtime.manifest import Graph
from handlens_runtime.stop import Stopped

THREADS_VARIABLE = "HANDLENS_THREADS"
LOOK_SECONDS = 0.05
"""How often a prompt that is one pass looks whether it is to end."""
_FATAL_ONLY = 4
"""ONNX Runtime's log level: what it would print to stderr is raised as BackendError instead."""
_ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,  # what a run with bound memory raises
    *(e for e in vars(ort_errors).values() if isinstance(e, type) and issubclass(e, Exception)),
)


def load(bundle: Bundle) -> Backend:
    """Open the bundle's ONNX programs and allocate the cache.

    Threads are the physical cores this process may use; HANDLENS_THREADS overrides. Raises BackendError where a file
    cannot be loaded or the bundle has no ONNX programs, OptionError for a HANDLENS_THREADS that is no number.
    """
    return OnnxBackend(bundle)


class OnnxBackend:
    """A bundle's ONNX programs, loaded (see `backends.base.Backend`)."""

    name = "onnx"
    warnings: tuple[str, ...] = ()

    def __init__(self, bundle: Bundle) -> None:
        graphs = bundle.manifest.backends.get("onnx")
        if graphs is None or graphs.embedding is None:
            raise BackendError(
                f"{bundle.path} has no onnx programs; use --backend {next(iter(bundle.manifest.backends))}, or export "
                "the checkpoint again with --backend onnx."
            )
        self._path, self._threads = bundle.path, thread_count()
        self._sizes = bundle.manifest.sizes
        self._graph = graphs.vision
        self._vision = None if self._graph is None else self._session(self._graph)
        self._embedding = self._session(graphs.embedding)
        self._decoder = self._session(graphs.decoder)
        self._logits = np.zeros((1, self._sizes.vocab_size), np.float32)
        self._sparsity = bundle.manifest.sparsity
        self._cache = _allocate(graphs.decoder, np.zeros if self._sparsity is None else heap.zeros)
        self._kept = KeptRows(self._sizes.layers) if self._sparsity else None
        self._binding = self._decoder.io_binding()
        for name, buffer in self._cache.items():
            self._binding.bind_ortvalue_input(f"past_{name}", buffer)
            self._binding.bind_ortvalue_output(f"present_{name}", buffer)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))

    @property
    def kv_bytes(self) -> int:
        """Bytes that the key-value cache holds, as allocated."""
        return sum(buffer.tensor_size_in_bytes() for buffer in self._cache.values())

    def encode(self, tiles: Array) -> tuple[Array, Array]:
        """tiles (n, 3, s, s) -> embeddings (n, tokens, width), features (n, patches, vision width)."""
        if self._graph is None:
            raise BackendError("This bundle is text-only and has no vision encoder; ask without an image.")
        if self._vision is None:
            self._vision = self._session(self._graph)
        with _reported("vision encoder"):
            embeddings, features = self._vision.run(["embeddings", "features"], {"tiles": tiles})
        return embeddings, features

    def release_encoder(self) -> None:
        """The encoder's session ends; the next `encode` opens it again, which takes seconds for a large one."""
        self._vision = None
        heap.trim()

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        """ids (t,) -> rows (t, width)."""
        with _reported("token embedding"):
            rows: Rows = self._embedding.run(["rows"], {"ids": ids[None].astype(np.int64)})[0][0]
        return rows

    def decode(self, rows: Rows, position: int) -> Array:
        """rows (t, width) at positions position..position+t-1 -> logits of the last, (vocab_size,)."""
        return self._decode(rows, position, 1.0, self._decoder.run_with_iobinding)

    def decode_prompt(
        self, rows: Rows, position: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Array, NDArray[np.bool_]]:
        """The same of a whole prompt, of which each layer keeps what matters to it: also which rows, (layers, t).

        Raises Stopped once `stopped`, between two of the program's operators.
        """
        assert self._sparsity is not None and self._kept is not None, "this bundle keeps all of a prompt"
        logits = self._decode(rows, position, self._sparsity.tau, lambda binding: self._run_until(stopped, binding))
        kept: NDArray[np.bool_] = self._binding.get_outputs()[-1].numpy()
        self._kept.note(position, kept)
        return logits, kept

    def _decode(self, rows: Rows, position: int, tau: float, run: Callable[[ort.IOBinding], object]) -> Array:
        if not 1 <= len(rows) <= self._sizes.max_chunk or not 0 <= position <= self._sizes.context - len(rows):
            raise BackendError(
                f"The decoder was given {len(rows)} rows at position {position}, but it takes 1 to "
                f"{self._sizes.max_chunk} at a time and {self._sizes.context} in all; shorten the conversation."
            )
        with _reported("text decoder"):
            self._binding.bind_cpu_input("rows", np.ascontiguousarray(rows[None], np.float32))
            self._binding.bind_cpu_input("position", np.array([position], np.int32))
            if self._kept is not None:
                self._binding.bind_cpu_input("tau", np.array([tau], np.float32))
                self._binding.bind_cpu_input("lengths", self._kept.at(position))
                self._binding.bind_output("kept")
            run(self._binding)
        last: Array = self._logits[0].copy()
        return last

    def _run_until(self, stopped: Callable[[], bool], binding: ort.IOBinding) -> None:
        """The decoder's pass in a thread of its own: in this one, Ctrl-C would wait for its end."""
        options = ort.RunOptions()
        options.terminate = stopped()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._decoder.run_with_iobinding, binding, options)
            try:
                while not wait([running], LOOK_SECONDS).done:
                    options.terminate = stopped()
            except BaseException:
                options.terminate = True
                raise
        if options.terminate and running.exception() is not None:
            raise Stopped
        running.result()

    def _session(self, graph: Graph) -> ort.InferenceSession:
        return _session(self._path, graph, self._threads)


def thread_count() -> int:
    """HANDLENS_THREADS, or the physical cores that this process may run on."""
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is None:
        return physical_cores()
    if not asked.isdecimal() or int(asked) < 1:
        raise OptionError(f"{THREADS_VARIABLE} is {asked!r}, but must be a whole number of threads, 1 or more.")
    return int(asked)


def physical_cores() -> int:
    """Cores among this process's processors; two hyper-threads count once, for int8 products gain nothing from both."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


def _session(folder: Path, graph: Graph, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY
    # Three sessions take turns: threads of one that spin on after its run would slow the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Chunks differ in length, so a memory plan kept for each length would only hold memory.
    options.enable_mem_pattern = False
    path = folder / graph.file
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise BackendError(
            f"{path} cannot be loaded by onnxruntime {ort.__version__} ({_first_line(error)}); export or copy the "
            "bundle again."
        ) from error


def _allocate(decoder: Graph, zeros: Callable[[list[int], str], NDArray[Any]]) -> dict[str, ort.OrtValue]:
    """A zeroed buffer for each of the decoder's past inputs, by the name after `past_`."""
    buffers = {}
    for port in decoder.inputs:
        if port.name.startswith("past_"):
            shape = [int(size) for size in port.shape]
            buffers[port.name.removeprefix("past_")] = ort.OrtValue.ortvalue_from_numpy(zeros(shape, port.dtype))
    return buffers


@contextmanager
def _reported(part: str) -> Iterator[None]:
    try:
        yield
    except _ORT_ERRORS as error:
        raise BackendError(
            f"The {part} failed in onnxruntime {ort.__version__} ({_first_line(error)}); "
            "`handlens check` shows whether the bundle is at fault."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
