"""Keeps other libraries' chatter off the terminal. `HANDLENS_DEBUG=1` shows it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

DEBUG = "HANDLENS_DEBUG"


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
