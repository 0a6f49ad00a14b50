"""A .pte behind one small interface, in two ways: through our own native code, or ExecuTorch's Python binding.

    open_program ─▶ native.py ── build.py compiles native.cpp at first use ── packed.py keeps XNNPACK's packed weights
                └─▶ binding.py, where that cannot be: no compiler, a cache folder that cannot be written

Both give the same numbers. The native code needs no torch package imported, and loads a program that was loaded before
without packing its weights again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from handlens_runtime.pte.build import NativeUnavailableError

try:
    from handlens_runtime.pte import native

    SLOWER = None
    """Why the native code is not used, if so."""
except NativeUnavailableError as error:
    from handlens_runtime.pte import binding

    SLOWER = f"ExecuTorch programs load slower than they could: {error}."


class Program(Protocol):
    """A loaded .pte and those of its methods that were asked for. What fails in it is a RuntimeError."""

    def load(self, method: str) -> None:
        """Load a method, with memory that no other shares. Raises LookupError where the program lacks it."""

    def give_back(self) -> None:
        """Let mapped weights leave memory where the system allows; methods stay loaded, and read them again.

        A pass after it takes longer by the time of a memory read of its weights, from the file where that is gone too.
        """

    def give_back_file(self) -> None:
        """The same for what is read from the program's own file, such as an embedding table; packed weights stay."""

    def run(self, method: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs of a loaded method, copied: the program writes its next ones into the same memory."""


def open_program(path: Path, sha256: str | None, methods: Sequence[str], warnings: list[str]) -> Program:
    """Open a .pte and load these methods of it.

    sha256: of the file's content, by which its packed weights are found again; without it they are not kept.
    `warnings` gets a sentence where loading is slower than it could be. Raises LookupError, naming it, for a method
    that the program lacks, RuntimeError or ValueError for a program that cannot be loaded.
    """
    if SLOWER is not None:
        warnings.append(SLOWER)
        return binding.open_program(path, methods)
    return native.open_program(path, sha256, methods, warnings)
