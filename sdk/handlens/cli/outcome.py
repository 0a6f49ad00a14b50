"""How a verb ends: exit codes, one-line errors, and nothing about what the verbs do.

0    answered
1    our fault: the sentence says where the traceback lies; or `check` found that the bundle departs
2    the user can mend it: one sentence on stderr
130  stopped with Ctrl-C
141  the reader of our output has gone (`handlens run … | head -1`)
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import typer

from handlens.cli.quiet import debugging
from handlens_runtime.errors import HandLensError

OURS = 1
MENDABLE = 2
STOPPED = 130
READER_GONE = 141

P = ParamSpec("P")


def answered(verb: Callable[P, None]) -> Callable[P, None]:
    """The verb, with every way it can end turned into an exit code and at most one line on stderr."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BaseException as error:
            _leave(error)

    return wrapped


def _leave(error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        raise typer.Exit(STOPPED)
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more as it ends, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_GONE)
    if debugging():
        traceback.print_exception(error)
    sentence = mendable(error)
    if sentence is not None:
        complain(sentence)
        raise typer.Exit(MENDABLE)
    if not isinstance(error, Exception):
        raise error
    complain(_fault(error))
    raise typer.Exit(OURS)


def mendable(error: BaseException) -> str | None:
    """The sentence for an error that the user can mend; None for any other."""
    if isinstance(error, HandLensError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}."
    if isinstance(error, MemoryError):
        return "There is not enough memory for this; close other programs, or take a smaller model or --context."
    return None


def _fault(error: Exception) -> str:
    # What was typed may hold bytes that are not UTF-8, and the report of a fault must not fail itself.
    with tempfile.NamedTemporaryFile(
        "w", prefix="handlens-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"handlens {' '.join(sys.argv[1:])}\n")
        file.writelines(traceback.format_exception(error))
    return (
        f"HandLens failed in a way that it should not ({type(error).__name__}: {_first_line(error)}); please report "
        f"it with the traceback in {file.name} (HANDLENS_DEBUG=1 shows it here)."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def complain(sentence: str) -> None:
    """One line on stderr, whatever line breaks the sentence brought along."""
    typer.echo(f"handlens: {' '.join(sentence.split())}", err=True)
