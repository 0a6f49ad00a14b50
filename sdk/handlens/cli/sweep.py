"""`handlens sweep`: what each quantizer, width and group costs this checkpoint, as a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.interrupt import interruptible
from handlens.cli.outcome import answered, complain
from handlens.cli.progress import duration, shown
from handlens.cli.quiet import without_cpuinfo
from handlens.cli.recipes import BackendOption, backends
from handlens.cli.tables import add_row, plain_table
from handlens.cli.units import size

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from handlens_export.sweep.table import Table

PICTURE = "sweep.png"


@answered
def sweep(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint folder, or a GGUF file.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for sweep.json and sweep.png.", show_default=False),
    ],
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="A text to predict.", show_default=False)] = None,
    tokens: Annotated[int, typer.Option(help="Of the text, its first.")] = 2048,
    questions: Annotated[
        Path | None, typer.Option(metavar="SET", help="Questions to answer, as in eval.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="Questions, spread over kinds and groups.")] = 100,
    methods: Annotated[
        str, typer.Option(help="round, clip, gptq, rsq; rotate+ or smooth+ before one.")
    ] = "round,clip,gptq,rsq",
    bits: Annotated[str, typer.Option(help="Bits of the decoder's linears.")] = "4",
    groups: Annotated[str, typer.Option(help="Weights that share a scale.")] = "32",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text or questions (as in eval) to measure on.", show_default="a small set"),
    ] = None,
    backend: BackendOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one JSON object.")] = False,
) -> None:
    """Try methods, bits and groups on a checkpoint before exporting it.

    Each is tried whole, in eager torch, on a text, on questions or on both. A stopped sweep goes on where it was.
    """
    from handlens import _api

    _api.require_workstation("sweep")
    from handlens_export.recipe import Recipe
    from handlens_export.sweep.run import Asked
    from handlens_export.sweep.variants import variants

    base = Recipe() if backend is None else Recipe(backends=backends(backend))
    wanted = variants(_words(methods), _numbers("--bits", bits), _numbers("--groups", groups), base)
    asked = Asked(text, tokens, questions, limit)
    warnings: list[str] = []
    try:
        with without_cpuinfo(), interruptible(), shown() as progress:
            table = _api.sweep(
                checkpoint, output, wanted, asked, calibration=calibration, progress=progress, warn=warnings.append
            )
    finally:
        for warning in warnings:  # once the progress bar is gone
            complain(warning)
    from handlens.cli.sweep_bars import draw

    draw(table).save(output / PICTURE)
    if as_json:
        typer.echo(json.dumps(table.to_json()))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(_table(table))
    typer.echo(
        f"Tried on {table.tokens} tokens and {table.questions} questions; kept in {output}, with a picture, {PICTURE}."
    )


def _words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()]


def _numbers(flag: str, value: str) -> list[int]:
    words = _words(value)
    if not words or not all(word.isdecimal() for word in words):
        raise typer.BadParameter(f"'{value}' is no list of whole numbers, such as 3,4.", param_hint=flag)
    return [int(word) for word in words]


def _table(table: Table) -> RichTable:
    shown_table = plain_table(
        "method", "bits", "group", "bits a weight", "linears", "perplexity", "right", "KL", "time"
    )
    for row in table.rows:
        add_row(
            shown_table,
            row.method,
            "-" if row.bits == 32 else str(row.bits),
            "-" if row.group is None else str(row.group),
            f"{row.bits_per_weight:.2f}",
            size(row.bytes),
            "-" if row.perplexity is None else f"{row.perplexity:.3f}",
            "-" if row.exact_match is None else f"{row.exact_match:.1%}",
            "no numbers" if row.kl is None else f"{row.kl:.4f}",
            "-" if row.bits == 32 else duration(row.seconds),
        )
    return shown_table
