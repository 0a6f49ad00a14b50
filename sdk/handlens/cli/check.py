"""`handlens check`: does a bundle answer as it did where it was made, or like its checkpoint, and if not, where not."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from handlens.cli.choices import BackendChoice
from handlens.cli.interrupt import interruptible
from handlens.cli.outcome import OURS, answered
from handlens.cli.progress import shown
from handlens.cli.quiet import without_cpuinfo
from handlens.cli.tables import add_row, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from handlens_export.check import Finding, Report
    from handlens_runtime.golden import Replay, Result


Found = TypeVar("Found", "Report", "Replay")


@answered
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(metavar="CKPT", help="The checkpoint that the bundle was made from.", show_default=False),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="With --against: a photograph to check with; repeatable.", show_default=False
        ),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --against: the LoRA folder given to export.", show_default=False),
    ] = None,
    backend: Annotated[
        BackendChoice | None, typer.Option(help="Check this backend only.", show_default="all in the bundle")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="With --against: what rounding each layer costs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Replay a bundle's recorded answers here, or compare it with its checkpoint.

    With --against it is stage by stage. The exit code is 1 if an answer or a stage departs.
    """
    for hint, given in (("--image", image), ("--lora", lora), ("--sensitivity", sensitivity)):
        if given and against is None:
            raise typer.BadParameter("is compared with the checkpoint; give --against too.", param_hint=hint)
    from handlens import _api

    if against is None:
        with without_cpuinfo(), interruptible(), shown() as progress:
            replay = _api.check(bundle, backend=backend, progress=progress)
        _tell(replay, as_json, _show_replay)
    else:
        with without_cpuinfo(), interruptible(), shown() as progress:
            report = _api.check(
                bundle,
                against,
                images=image or (),
                lora=lora,
                backend=backend,
                sensitivity=sensitivity,
                progress=progress,
            )
        _tell(report, as_json, _show)


def _tell(found: Found, as_json: bool, show: Callable[[Found], None]) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        show(found)
    if not found.passed:
        raise typer.Exit(OURS)


def _show_replay(replay: Replay) -> None:
    """A row an answer, then what was not asked, then the verdict."""
    from rich.console import Console

    console = Console()
    table = plain_table("backend", "prompt", "difference", "limit", "same tokens", "")
    for result in replay.results:
        add_row(table, *_cells(result))
    console.print("The five best first tokens here beside those recorded at export", style="bold")
    console.print(table)
    console.print()
    for reason in replay.left_out:
        console.print(f"left out at export: {reason}", markup=False)
    for backend in replay.not_installed:
        console.print(f"{backend}: not installed here, not asked.")
    for backend in dict.fromkeys(result.backend for result in replay.results):
        passed = all(result.passed for result in replay.results if result.backend == backend)
        console.print(f"{backend}: answers {'as' if passed else 'otherwise than'} where the bundle was made.")


def _cells(result: Result) -> tuple[str, ...]:
    asked = f"{result.picture}: {result.prompt}" if result.picture else result.prompt
    return (
        result.backend,
        asked,
        f"{result.difference:.4f} nats",
        f"{result.limit:g}",
        f"{result.same_tokens} of {result.tokens}",
        "ok" if result.passed else "DEPARTS",
    )


def _show(report: Report) -> None:
    """Stages in order, worst prompt each; then what rounding cost; then the verdict."""
    from rich.console import Console

    console = Console()
    backends = dict.fromkeys(finding.backend for finding in report.findings)
    for backend in backends:
        console.print(f"{backend}: the program beside the checkpoint rounded as {backend} rounds", style="bold")
        console.print(_stages(report, backend))
        console.print()
    costs = "rounding and leaving tokens out cost" if any(one.sparse for one in report.distances) else "rounding costs"
    console.print(f"What {costs}: next token against the float checkpoint, no verdict", style="bold")
    console.print(_distances(report))
    console.print()
    if report.sensitivities:
        console.print("What each layer costs, alone rounded: divergence of the next token, in nats", style="bold")
        console.print(_costs(report))
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
            # Limits differ by prompt: the worst is the one closest to its own limit, or furthest beyond.
            worst = min(findings, key=_margin)
            verdict = "ok" if all(found.passed for found in findings) else "DEPARTS"
            add_row(table, stage, worst.measure, f"{worst.value:.6g}", f"{worst.limit:g}", worst.prompt, verdict)
    return table


def _margin(found: Finding) -> float:
    """How far a finding is on the right side of its limit; below 0 where it departs."""
    return found.value - found.limit if found.measure == "cosine" else found.limit - found.value


def _costs(report: Report) -> Table:
    """A row a layer, and its share of the sum: what costs most is what is worth more bits (--layer-bits)."""
    table = plain_table("layer", "attention", "mlp", "of all")
    kl = {one.place: one.kl for one in report.sensitivities}
    total = sum(kl.values()) or 1.0  # infinite where a layer gives no numbers: all others are nothing beside it
    layers = list(dict.fromkeys(place.rpartition(".")[0] for place in kl))
    for layer in layers:
        attention, mlp = kl[f"{layer}.attention"], kl[f"{layer}.mlp"]
        add_row(
            table,
            layer,
            f"{attention:.2g}",
            f"{mlp:.2g}",
            "all" if isinf(attention + mlp) else f"{(attention + mlp) / total:.1%}",
        )
    return table


def _distances(report: Report) -> Table:
    table = plain_table("backend", "prompt", "cosine", "KL divergence", "same token")
    for distance in report.distances:
        same = "yes" if distance.same_token else "no"
        add_row(table, distance.backend, distance.prompt, f"{distance.cosine:.4f}", f"{distance.kl:.2g} nats", same)
    return table
