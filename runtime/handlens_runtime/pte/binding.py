"""A .pte through ExecuTorch's Python binding, which imports torch, and packs all weights at each load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Imported for what they register: the operators that a program calls besides XNNPACK's.
import executorch.extension.llm.custom_ops.custom_ops
import executorch.kernels.quantized  # noqa: F401
import numpy as np
import torch
from executorch.runtime import Method, Runtime
from executorch.runtime import Program as Loaded
from numpy.typing import NDArray


def open_program(path: Path, methods: Sequence[str]) -> BindingProgram:
    """See `handlens_runtime.pte.open_program`."""
    program = BindingProgram(path)
    for method in methods:
        program.load(method)
    return program


class BindingProgram:
    """See `handlens_runtime.pte.Program`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._methods: dict[str, tuple[Method, Loaded]] = {}
        """With the program that each reads its weights from, to which it holds no reference."""

    def load(self, method: str) -> None:
        """Load a method; LookupError where the program lacks it.

        It gets a program of its own: the binding gives all methods of one program the same planned memory, so that an
        encoder pass would overwrite the decoder's cache. The file is memory-mapped, not read again.
        """
        program = Runtime.get().load_program(self._path)
        if method not in program.method_names:
            raise LookupError(method)
        self._methods[method] = program.load_method(method), program

    def give_back(self) -> None:
        """Does nothing: the binding packs weights in memory of its own."""

    def give_back_file(self) -> None:
        """Does nothing, likewise."""

    def run(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs of a loaded method, copied."""
        outputs = self._methods[method][0].execute([_tensor(array) for array in inputs])
        return [output.numpy().copy() for output in outputs]


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """Sharing memory where torch can: it takes no array that is strided, and warns of one that is read-only."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
