"""The command line: one module a verb. Every import over a millisecond is inside the verb that needs it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from handlens import __version__
from handlens.cli.advise import advise
from handlens.cli.bench import bench
from handlens.cli.cache import cache
from handlens.cli.check import check
from handlens.cli.evaluate import evaluate
from handlens.cli.export import export
from handlens.cli.init import init
from handlens.cli.inspect import inspect
from handlens.cli.light import own_process
from handlens.cli.plan import plan
from handlens.cli.quiet import hush_libraries
from handlens.cli.run import run
from handlens.cli.sweep import sweep
from handlens.cli.usage import Verb, Verbs

app = typer.Typer(
    name="handlens",
    cls=Verbs,
    help="Make a vision-language model run on a phone.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (init, plan, advise, sweep, export, run, inspect, check, bench, cache):
    app.command(cls=Verb)(verb)
app.command("eval", cls=Verb)(evaluate)  # `eval` is Python's own word


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"handlens {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with its exit code."""
    hush_libraries()
    own_process()
    for stream in (sys.stdout, sys.stderr):
        # An answer may hold any character; a terminal that lacks one shows a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()
