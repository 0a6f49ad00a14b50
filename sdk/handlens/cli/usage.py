"""A command line that was typed wrongly, answered in one sentence like every other error that the user can mend."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from handlens.cli.outcome import MENDABLE, complain

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Base of all usage errors; typer exports no name for it."""
_VALUE = re.compile(r"Value error, |Input (should be a valid \w+).*")
"""What pydantic, which parses the values, says in its own manner."""


class Verb(TyperCommand):
    """A verb whose usage line is plain: `run [OPTIONS] BUNDLE [PROMPT]`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the verb's name, without typer's braces around the required ones."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Verbs(TyperGroup):
    """All verbs; what is wrong with the words of any is one line on stderr and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words before the verb."""
        if not args:  # shows the help
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            raise _refused(error) from error

    def invoke(self, ctx: Any) -> Any:
        """The verb and its words."""
        try:
            return super().invoke(ctx)
        except USAGE_ERROR as error:
            raise _refused(error) from error


def _refused(error: Any) -> typer.Exit:
    said = " ".join(_VALUE.sub(r"\1", error.format_message()).split()).rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else "handlens"
    complain(f"{said}{_hint(said, getattr(error, 'option_name', ''), path)}; see {path} --help.")
    return typer.Exit(MENDABLE)


def _hint(said: str, option: str, path: str) -> str:
    # One minus, or spaces: perhaps a question such as "-5 plus 3?", for only -h and -o are options.
    if re.match(r"-[^-]|--.*\s", option):
        return "; put -- before a question that starts with a minus"
    extra = re.match(r"Got unexpected extra argument\S* \((.)", said)
    if extra is None:
        return ""
    if extra[1] == "-":  # read as an option anywhere else
        return "; put options before the --"
    return "; put quotes around a question of several words" if path.endswith(" run") else ""
