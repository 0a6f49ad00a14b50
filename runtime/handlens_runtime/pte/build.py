"""Compiles `native.cpp` at first use, with the machine's C++ compiler against the installed executorch.

The result lies in the cache folder under the hash of what it was made from, and is used only while it is whole.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from handlens_runtime import kept
from handlens_runtime.verdicts import CACHE_VARIABLE

COMPILER_VARIABLE = "CXX"
_COMPILERS = ("c++", "g++", "clang++")
_SOURCE = Path(__file__).with_name("native.cpp")
# Of executorch-config.cmake: its classes have another layout without the second.
_FLAGS = (
    *("-std=c++17", "-O2", "-w", "-shared", "-fPIC"),
    *("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL"),
)
_LIBRARY = Path("lib/libexecutorch.so")
_OPERATORS = (
    Path("extension/llm/custom_ops/libcustom_ops_aot_lib.so"),
    Path("kernels/quantized/libquantized_ops_aot_lib.so"),
)
"""Loaded for what they register, which is what a program calls besides XNNPACK's. They bring torch's libraries, XNNPACK
and the standard kernels along, but none of torch's Python."""
_PATIENCE_SECONDS = 60.0
_COMPILE_SECONDS = 300.0


class NativeUnavailableError(Exception):
    """The native code cannot be had on this machine; `str()` says why, as part of a sentence."""


def executorch_folder() -> Path:
    """Where the installed executorch lies. Not imported, which takes seconds and brings torch."""
    try:
        return Path(str(metadata.distribution("executorch").locate_file("executorch")))
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError("No module named 'executorch'", name="executorch") from error


def load_library() -> ctypes.CDLL:
    """The compiled native code, and with it the operators that programs call. Raises NativeUnavailableError."""
    if sys.platform != "linux":
        raise NativeUnavailableError(f"the native code that keeps packed weights is for Linux, this is {sys.platform}")
    folder = executorch_folder()
    if not (folder / "include").is_dir() or not all((folder / part).is_file() for part in (_LIBRARY, *_OPERATORS)):
        raise NativeUnavailableError(f"{folder} has no C++ headers and libraries, as executorch 1.5.1 does")
    try:
        # Found by their names from here on: what is compiled needs no path to them.
        for part in (_LIBRARY, *_OPERATORS):
            ctypes.CDLL(str(folder / part))
        return ctypes.CDLL(str(_compiled(folder)))
    except OSError as error:
        raise NativeUnavailableError(f"native code does not load ({_first_line(str(error))})") from error


def _compiled(executorch: Path) -> Path:
    path = kept.folder_of("native") / f"{_key(executorch)}.so"
    if kept.find(path):
        return path
    compiler = _compiler()
    with kept.locked(path, _PATIENCE_SECONDS) as ours:
        if not ours:
            raise NativeUnavailableError(
                f"{path.parent} cannot be written; let {CACHE_VARIABLE} name a folder that can"
            )
        if not kept.find(path):  # another process may have made it while this one waited
            _compile(compiler, executorch, path)
    return path


def _key(executorch: Path) -> str:
    made_from = hashlib.sha256(_SOURCE.read_bytes())
    for part in (metadata.version("executorch"), platform.machine(), *_FLAGS):
        made_from.update(b"\0" + part.encode())
    made_from.update((executorch / _LIBRARY).read_bytes())
    return made_from.hexdigest()[:32]


def _compiler() -> str:
    named = os.environ.get(COMPILER_VARIABLE)
    for name in (named,) if named else _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    missing = f"{COMPILER_VARIABLE} names {named}, which is not there" if named else "no C++ compiler is installed"
    raise NativeUnavailableError(f"{missing}, so native code that keeps packed weights cannot be built")


def _compile(compiler: str, executorch: Path, path: Path) -> None:
    headers = executorch / "include"
    try:
        written = kept.partial(path)
        words = [compiler, *_FLAGS, f"-I{headers}", f"-I{headers / 'executorch/runtime/core/portable_type/c10'}"]
        words += [str(_SOURCE), f"-L{(executorch / _LIBRARY).parent}", "-lexecutorch", "-o", str(written)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
        if done.returncode:
            written.unlink(missing_ok=True)
            raise NativeUnavailableError(f"{compiler} cannot compile {_SOURCE.name} ({_first_line(done.stderr)})")
        kept.keep(written, path, {"executorch": metadata.version("executorch"), "compiler": compiler})
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{compiler} cannot compile {_SOURCE.name} ({error})") from error


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
