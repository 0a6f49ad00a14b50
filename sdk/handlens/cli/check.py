"""`handlens check`: does a bundle answer like its checkpoint, and if not, from which stage on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.choices import BackendChoice
from handlens.cli.outcome import OURS, answered
from handlens.cli.progress import shown

if TYPE_CHECKING:
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
    raise NotImplementedError
