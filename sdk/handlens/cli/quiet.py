"""Keeps other libraries' chatter off the terminal. `HANDLENS_DEBUG=1` shows it."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DEBUG = "HANDLENS_DEBUG"
CPUINFO = r"^Error in cpuinfo: |^\[cpuinfo_utils\.cpp:"
"""How each line begins that cpuinfo, of which every backend has a copy, prints where a sandbox or a new processor lacks
a file that it looks for, or ExecuTorch where it cannot count the fast cores. Everything works all the same."""


def debugging() -> bool:
    """Whether the user asked to see everything."""
    return os.environ.get(DEBUG) == "1"


def hush_libraries() -> None:
    """For this process: no warnings and no log lines of libraries, which a user of ours cannot act on."""
    if not debugging():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


@contextmanager
def hushed_loading() -> Iterator[None]:
    """Hold back what native code writes to stderr while it loads (ExecuTorch tells which files it reads).

    Python's own stderr is the same file, so nothing of ours may be said inside. If the block fails, all of it is shown.
    """
    if debugging():
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(stderr, 2)
            held.seek(0)
            with os.fdopen(os.dup(2), "wb") as out:
                shutil.copyfileobj(held, out)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


class _Sieved(io.TextIOWrapper):
    """Python's stderr without cpuinfo's lines: ExecuTorch's binding sends there what its own code writes."""

    _inside = False
    """Whether what comes next belongs to a line that is held back."""

    def write(self, text: str) -> int:
        """All of the text but those lines."""
        kept = []
        for line in text.splitlines(keepends=True):
            held = self._inside or re.match(CPUINFO, line)
            if not held:
                kept.append(line)
            self._inside = bool(held) and not line.endswith("\n")
        super().write("".join(kept))
        return len(text)


@contextmanager
def without_cpuinfo() -> Iterator[None]:
    """Keep cpuinfo's lines off stderr, and no others, while native libraries may be loaded.

    What native code writes goes through grep: a process of its own, so that the last words of a crash still arrive.
    Python's own stderr is sieved here: it stays the terminal that a progress bar needs.
    """
    grep = shutil.which("grep")
    if debugging() or grep is None:
        yield
        return
    sys.stderr.flush()
    stderr, python = os.dup(2), sys.stderr
    words = [grep, "-E", "-a", "-v", "--line-buffered", CPUINFO]
    # A session of its own: Ctrl-C is for us.
    sieve = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True)
    assert sieve.stdin is not None
    os.dup2(sieve.stdin.fileno(), 2)
    sieve.stdin.close()
    if sys.__stderr__ is not None and python is sys.__stderr__:
        encoding, errors = sys.__stderr__.encoding, sys.__stderr__.errors
        terminal = os.fdopen(stderr, "wb", closefd=False)
        sys.stderr = _Sieved(terminal, encoding=encoding, errors=errors, line_buffering=True)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = python
        os.dup2(stderr, 2)
        os.close(stderr)
        with suppress(subprocess.TimeoutExpired):  # a process that we started may hold the other end
            sieve.wait(1)
