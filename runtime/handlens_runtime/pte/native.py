"""A .pte through our own native code: its file mapped, its packed weights kept. Imports no torch.

Importing this module compiles and loads the native code; it raises NativeUnavailableError where that cannot be.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlens_runtime.pte.build import load_library
from handlens_runtime.pte.packed import place
from handlens_runtime.pte.pages import give_back, identity

_MAX_RANK, _MOST_OUTPUTS = 8, 8
_TYPES = {0: np.uint8, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.int64, 5: np.float16, 6: np.float32, 7: np.float64}
"""ExecuTorch's ScalarType in numpy's words."""
_CODES = {np.dtype(dtype): code for code, dtype in _TYPES.items()} | {np.dtype(np.bool_): 11}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class _Tensor(ctypes.Structure):
    """HandlensTensor of native.cpp."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * _MAX_RANK),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


def _declared() -> ctypes.CDLL:
    library = load_library()
    program, text, tensors = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(_Tensor)
    library.handlens_reason.restype = text
    library.handlens_longest_path.restype = ctypes.c_int64
    library.handlens_open.argtypes, library.handlens_open.restype = [text, text], program
    library.handlens_has.argtypes = [program, text]
    library.handlens_load.argtypes = [program, text]
    library.handlens_run.argtypes = [program, text, tensors, ctypes.c_int, tensors, ctypes.c_int]
    library.handlens_close.argtypes, library.handlens_close.restype = [program], None
    library.handlens_start()
    return library


_LIBRARY = _declared()


def open_program(path: Path, sha256: str | None, methods: Sequence[str], warnings: list[str]) -> NativeProgram:
    """See `handlens_runtime.pte.open_program`."""
    with place(path, sha256, _LIBRARY.handlens_longest_path(), warnings) as packed:
        program = _loaded(path, packed.path, methods)
    if not packed.sound:
        del program
        program = _loaded(path, None, methods)
    return program


def _loaded(path: Path, packed: Path | None, methods: Sequence[str]) -> NativeProgram:
    program = NativeProgram(path, packed)
    for method in methods:
        program.load(method)
    return program


class NativeProgram:
    """See `handlens_runtime.pte.Program`."""

    def __init__(self, path: Path, packed: Path | None = None) -> None:
        """`packed`: file where XNNPACK finds or leaves packed weights."""
        where = None if packed is None else str(packed).encode()
        handle = _LIBRARY.handlens_open(str(path).encode(), where)
        if handle is None:
            raise RuntimeError(_reason())
        self._handle = handle
        self._files = [path] if packed is None else [path, packed]
        self._mapped: set[tuple[int, int]] = set()
        """Of those files: the one of packed weights gets another name once it is kept."""
        self._close = weakref.finalize(self, _LIBRARY.handlens_close, handle)
        # The process may end while another thread still runs a method.
        self._close.atexit = False

    def load(self, method: str) -> None:
        """Load a method; LookupError where the program lacks it."""
        found = _LIBRARY.handlens_has(self._handle, method.encode())
        if found == 0:
            raise LookupError(method)
        if found < 0 or _LIBRARY.handlens_load(self._handle, method.encode()) != 0:
            raise RuntimeError(_reason())
        self._mapped |= {found for found in map(identity, self._files) if found is not None}

    def give_back(self) -> None:
        """See `handlens_runtime.pte.Program`: for weights packed in memory, which are no file's, it does nothing."""
        give_back(self._mapped)

    def give_back_file(self) -> None:
        """See `handlens_runtime.pte.Program`."""
        give_back([found for found in [identity(self._files[0])] if found is not None])

    def run(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs of a loaded method, copied. The inputs' memory is shared where they are dense."""
        arrays = [np.ascontiguousarray(array) for array in inputs]
        given = (_Tensor * len(arrays))(*map(_described, arrays))
        taken = (_Tensor * _MOST_OUTPUTS)()
        count = _LIBRARY.handlens_run(self._handle, method.encode(), given, len(arrays), taken, _MOST_OUTPUTS)
        if count < 0:
            raise RuntimeError(_reason())
        return [_copied(tensor) for tensor in taken[:count]]


def _described(array: NDArray[Any]) -> _Tensor:
    if array.ndim > _MAX_RANK or array.dtype not in _CODES:
        raise ValueError(f"an array of {array.ndim} dimensions and type {array.dtype} is no input of a program")
    sizes = (ctypes.c_int64 * _MAX_RANK)(*array.shape)
    return _Tensor(array.ctypes.data, sizes, array.ndim, _CODES[array.dtype])


def _copied(tensor: _Tensor) -> NDArray[Any]:
    dtype, shape = _DTYPES.get(tensor.type), tuple(tensor.sizes[: tensor.rank])
    if dtype is None:
        raise ValueError(f"the program gave a tensor of a type that numpy lacks ({tensor.type})")
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    content = ctypes.string_at(tensor.data, size) if size else b""
    return np.frombuffer(bytearray(content), dtype).reshape(shape)


def _reason() -> str:
    reason: bytes = _LIBRARY.handlens_reason()
    return f"ExecuTorch error {reason.decode(errors='replace')}"
