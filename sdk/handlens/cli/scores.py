"""Results of an evaluation as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handlens.cli.tables import add_row, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from handlens_runtime.evaluation import Difference, Evaluation, Perplexity


def show_scores(found: Sequence[Evaluation]) -> None:
    """A table a run, then one of the first run minus the second."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file's lines must not be broken at column 80
    tables = [(f"{name_of(one)}: {one.path}", _scores(one)) for one in found]
    if len(found) > 1:
        first, second = found
        title = f"{name_of(first)} minus {name_of(second)}, the same questions"
        tables.append((title, _differences(first.compare(second))))
    for index, (title, table) in enumerate(tables):
        if index:
            console.print()
        console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(table)


def name_of(run: Evaluation | Perplexity) -> str:
    """A bundle by its folder, for two exports of one checkpoint have one name, what ran it, and whether it kept all."""
    folder, here = run.folder, Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return f"{shown} on {run.backend}{', dense' if run.dense else ''}"


def _scores(evaluation: Evaluation) -> Table:
    table = plain_table(
        "kind", "group", "questions", "exact match", "95 % interval", "characters right", "vision tokens"
    )
    for score in evaluation.scores:
        add_row(
            table,
            score.kind or "all",
            score.group or "",
            str(score.count),
            f"{score.exact_match:.1%}",
            f"{score.interval[0]:.1%} to {score.interval[1]:.1%}",
            f"{score.character_accuracy:.1%}",
            f"{score.image_tokens:.0f}",
        )
    return table


def _differences(differences: Sequence[Difference]) -> Table:
    table = plain_table(
        "kind", "group", "questions", "points", "95 % interval", "right here only", "right there only", "same answer"
    )
    for one in differences:
        add_row(
            table,
            one.kind or "all",
            one.group or "",
            str(one.count),
            f"{100 * one.difference:+.2f}",
            f"{100 * one.interval[0]:+.2f} to {100 * one.interval[1]:+.2f}",
            str(one.only_first),
            str(one.only_second),
            f"{one.identical:.1%}",
        )
    return table
