"""A chat on the terminal, or turns piped in, one a line.

Ctrl-C stops an answer and keeps what was said so far; at the prompt it clears the line. Ctrl-D or /quit ends.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from handlens.cli.interrupt import stops
from handlens.cli.outcome import complain, mendable
from handlens.cli.run import statistics

if TYPE_CHECKING:
    from handlens_runtime.chat import Message
    from handlens_runtime.engine import Engine
    from handlens_runtime.options import Options

HELP = "/image PATH adds a picture to the next question, /reset forgets the conversation, /quit ends."


class Chat:
    """The conversation so far, and the next question's pictures."""

    def __init__(self, engine: Engine, options: Options, system: str | None, images: tuple[Path, ...]) -> None:
        self._engine = engine
        self._options = options
        self._system = system
        self._messages: list[Message] = []
        self._images = list(images)
        self._forget()

    def loop(self) -> None:
        """Read, answer, until the input ends or says /quit."""
        with contextlib.suppress(ImportError):  # some Pythons come without line editing
            import readline  # noqa: F401  (input() uses it once it is imported)
        typed = sys.stdin.isatty()
        if typed:
            complain(HELP)
        while (line := _read(typed)) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._turn(line)

    def _command(self, line: str) -> bool:
        """Do what a line with a slash says; False ends the chat."""
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return False
        if word == "/reset":
            self._images.clear()
            self._forget()
        elif word == "/image" and rest.strip():
            self._add_image(Path(rest.strip()).expanduser())
        else:
            complain(HELP)
        return True

    def _add_image(self, path: Path) -> None:
        """Take a picture into the next question, and encode it while that question is still being typed."""
        from handlens_runtime.chat import Message

        pictures = (*self._images, path)
        try:
            with stops(self._engine):
                self._engine.prefill([*self._messages, Message("user", images=pictures)])
        except Exception as error:
            _explain(error)
        else:
            self._images.append(path)

    def _forget(self) -> None:
        from handlens_runtime.chat import Message

        self._engine.reset()
        self._messages = [] if self._system is None else [Message("system", self._system)]

    def _turn(self, text: str) -> None:
        from handlens_runtime.chat import Message

        question = Message("user", text, tuple(self._images))
        pieces: list[str] = []
        try:
            with stops(self._engine):
                for token in self._engine.generate([*self._messages, question], self._options):
                    pieces.append(token.text)
                    sys.stdout.write(token.text)
                    sys.stdout.flush()
        except Exception as error:
            _explain(error)
            self._images.clear()
            return
        typer.echo()
        typer.echo(statistics(self._engine.stats), err=True)
        self._messages += [question, Message("assistant", "".join(pieces))]
        self._images.clear()


def _explain(error: Exception) -> None:
    """One line: what cannot be answered must not end the conversation. Raises what the user cannot mend."""
    sentence = mendable(error)
    if sentence is None or isinstance(error, BrokenPipeError):
        raise error
    complain(sentence)


def _read(typed: bool) -> str | None:
    """The next line, stripped; None at the end of the input."""
    while True:
        try:
            return input("> " if typed else "").strip()
        except EOFError:
            if typed:
                typer.echo()
            return None
        except KeyboardInterrupt:
            if not typed:
                raise
            typer.echo()
