"""`handlens check`: does a bundle answer like its checkpoint, and if not, from which stage on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.choices import BackendChoice
from handlens.cli.outcome import OURS, answered
from handlens.cli.progress import shown
from handlens.cli.tables import add_row, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from handlens_export.check import Report


@answered
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    against: Annotated[
        Path, typer.Option(metavar="CKPT", help="The checkpoint that the bundle was made from.", show_default=False)
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A photograph to check with; repeatable.", show_default=False),
    ] = None,
    backend: Annotated[
        BackendChoice | None, typer.Option(help="Check this backend only.", show_default="all in the bundle")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Compare a bundle with its checkpoint.

    Stage by stage; the exit code is 1 if one departs.
    """
    from handlens import _api

    _api.require_workstation("check")
    with shown() as progress:
        report = _api.check(bundle, against, images=image or (), backend=backend, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _show(report)
    if not report.passed:
        raise typer.Exit(OURS)


def _show(report: Report) -> None:
    """Stages in order, worst prompt each; then what rounding cost; then the verdict."""
    from rich.console import Console

    console = Console()
    backends = dict.fromkeys(finding.backend for finding in report.findings)
    for backend in backends:
        console.print(f"{backend}: the program beside the checkpoint rounded as {backend} rounds", style="bold")
        console.print(_stages(report, backend))
        console.print()
    console.print("What rounding costs: next token against the float checkpoint, no verdict", style="bold")
    console.print(_distances(report))
    console.print()
    for backend in backends:
        stage = report.departs(backend)
        console.print(
            f"{backend}: answers like the checkpoint." if stage is None else f"{backend}: departs at {stage}."
        )


def _stages(report: Report, backend: BackendChoice) -> Table:
    from handlens_export.check import STAGES

    table = plain_table("stage", "measure", "worst", "limit", "prompt", "")
    for stage in STAGES:
        findings = [found for found in report.findings if found.backend == backend and found.stage == stage]
        if findings:
            worst = min(findings, key=lambda found: found.value if found.measure == "cosine" else -found.value)
            verdict = "ok" if all(found.passed for found in findings) else "DEPARTS"
            add_row(table, stage, worst.measure, f"{worst.value:.6g}", f"{worst.limit:g}", worst.prompt, verdict)
    return table


def _distances(report: Report) -> Table:
    table = plain_table("backend", "prompt", "cosine", "KL divergence", "same token")
    for distance in report.distances:
        same = "yes" if distance.same_token else "no"
        add_row(table, distance.backend, distance.prompt, f"{distance.cosine:.4f}", f"{distance.kl:.2g} nats", same)
    return table
