"""A runner in a process of its own: its peak memory is its own, and what it does to its process harms no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import IO, Any, Literal, cast

from handlens_runtime import errors
from handlens_runtime.bench.runner import Opened, Vision
from handlens_runtime.errors import BackendError

LAST_WORDS = 2000
"""Bytes of a dead process's stderr that are looked at."""
WAIT_S = 10.0


class Remote:
    """A runner behind a pipe (see `runner.Runner`)."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[bytes]) -> None:
        self._process = process
        self._stderr = stderr

    def prefill(self, tokens: int) -> float:
        """Seconds of a prompt."""
        return float(self._call("prefill", tokens=tokens))

    def decode(self, depth: int, tokens: int) -> float:
        """Seconds of `tokens` steps at `depth`."""
        return float(self._call("decode", depth=depth, tokens=tokens))

    def kept(self, depth: int) -> float:
        """Share of `depth` tokens that were cached."""
        return float(self._call("kept", depth=depth))

    def encode_tile(self) -> float:
        """Seconds of one tile."""
        return float(self._call("encode_tile"))

    def encode_picture(self, width: int, height: int) -> Vision:
        """One picture."""
        return cast(Vision, self._call("encode_picture", width=width, height=height))

    def peak_memory_released(self) -> int | None:
        """Of the runner's process, the encoder's memory given back."""
        return cast(int | None, self._call("peak_memory_released"))

    def peak_memory(self) -> int:
        """Of the runner's process."""
        return int(self._call("peak_memory"))

    def ask(self, request: Mapping[str, object]) -> Any:
        """One line there, one back. Raises the error that the runner raised; BackendError where its process died."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BackendError(self._death())
        reply = json.loads(line)
        if "error" in reply:
            raise getattr(errors, reply["error"])(reply["sentence"])
        return reply["value"]

    def _call(self, call: str, **options: int) -> Any:
        return self.ask({"call": call, "with": options})

    def _death(self) -> str:
        code = self._process.wait(WAIT_S)
        if code == -9:
            return "The benchmark's process was killed, most likely for memory; close other programs or ask for less."
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - LAST_WORDS))
        said = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return f"The benchmark's process ended with code {code} ({said[-1] if said else 'no word'}); report it."


@contextmanager
def started(
    kind: Literal["bundle", "llama.cpp"], options: Mapping[str, object]
) -> Iterator[tuple[Remote, Opened, float]]:
    """A runner that is loaded, what it says of itself, and the seconds from the process's start until it said so."""
    # -P: a folder called like a package, in the working directory, must not be taken for it.
    command = [sys.executable, "-P", "-m", "handlens_runtime.bench.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as stderr:
        began = perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is for us
        )
        try:
            remote = Remote(process, stderr)
            opened = cast(Opened, remote.ask({"open": kind, "with": options}))
            yield remote, opened, perf_counter() - began
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None and process.stdout is not None
            process.stdout.close()
            with suppress(BrokenPipeError):  # what it died before reading
                process.stdin.close()
