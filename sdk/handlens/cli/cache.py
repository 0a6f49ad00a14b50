"""`handlens cache`: the finished layers that exports keep on disk, and what loading keeps, shown or cleared."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.choices import CacheChoice
from handlens.cli.outcome import answered
from handlens.cli.tables import add_row, plain_table
from handlens.cli.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from handlens_export.stage_cache.entries import Entry
    from handlens_runtime.kept import KeptFile

DAY = 24 * 60 * 60
UNKNOWN = "unknown"
LOADED = {"packed": "weights packed for this processor", "native": "native code"}
"""What loading a program keeps, by its folder."""


@answered
def cache(
    action: Annotated[CacheChoice, typer.Argument(metavar="clear", help="clear: remove it.")] = "show",
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Clear only what was not used for so long.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show or clear what exports and loads keep.

    Finished layers, so that an export that was stopped goes on where it was; weights packed for this processor, so
    that an ExecuTorch program loads in a moment the second time. HANDLENS_CACHE names the folder,
    HANDLENS_CACHE_BYTES the most that they take: 20 GB if not set, 0 for none. The least recently used go first.
    """
    if older_than is not None and action != "clear":
        raise typer.BadParameter("says what to clear; write: handlens cache clear.", param_hint="--older-than")
    from handlens_export.stage_cache.entries import clear, entries, stage_folder
    from handlens_runtime import kept

    folder = stage_folder()
    if action == "clear":
        seconds = (older_than or 0.0) * DAY
        loaded = [one for kind in LOADED for one in kept.clear(kept.folder_of(kind), seconds)]
        removed, held = clear(folder, seconds)
        _report_cleared([*removed, *loaded], held, as_json)
        return
    of_loads = {kind: kept.kept_files(kept.folder_of(kind)) for kind in LOADED}
    found, bound = entries(folder), kept.size_bound()
    checkpoints = _by_checkpoint(found)
    if as_json:
        rows = [
            {"checkpoint": name, "entries": len(of), "bytes": _bytes(of), "last_used": _when(of).isoformat()}
            for name, of in checkpoints.items()
        ]
        whole = {"folder": str(folder), "entries": len(found), "bytes": _bytes(found), "most_bytes": bound}
        loads = {kind: {"entries": len(files), "bytes": _bytes(files)} for kind, files in of_loads.items()}
        typer.echo(json.dumps({**whole, "checkpoints": rows, **loads}))
        return
    typer.echo(f"{folder}: {_counted(found)} of at most {size(bound)}.")
    if found:
        _show(checkpoints)
    for kind, files in of_loads.items():
        if files:
            typer.echo(f"{kept.folder_of(kind)}: {_counted(files)}: {LOADED[kind]}.")


def _by_checkpoint(found: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries by the checkpoint that they were made from, the most recently used first."""
    from handlens_export.stage_cache.entries import about

    checkpoints: dict[str, list[Entry]] = {}
    for entry in reversed(found):
        checkpoints.setdefault(about(entry).get("checkpoint", UNKNOWN), []).append(entry)
    return checkpoints


def _show(checkpoints: dict[str, list[Entry]]) -> None:
    from rich.console import Console

    table = plain_table("checkpoint", "entries", "size", "last used")
    for name, of in checkpoints.items():
        add_row(table, name, str(len(of)), size(_bytes(of)), f"{_when(of):%Y-%m-%d %H:%M}")
    console = Console()
    # Redirected to a file, a table is as wide as it needs to be.
    (console if console.is_terminal else Console(width=160)).print(table)


def _report_cleared(removed: Sequence[Entry | KeptFile], held: Sequence[Entry], as_json: bool) -> None:
    if as_json:
        kept = {"in_use": len(held), "in_use_bytes": _bytes(held)}
        typer.echo(json.dumps({"removed": len(removed), "removed_bytes": _bytes(removed), **kept}))
        return
    rest = f" {_counted(held)} stay: an export uses them." if held else ""
    typer.echo(f"Removed {_counted(removed)}.{rest}")


def _counted(found: Sequence[Entry | KeptFile]) -> str:
    """`71 entries, 3.7 GB`."""
    return f"{len(found)} {'entry' if len(found) == 1 else 'entries'}, {size(_bytes(found))}"


def _bytes(found: Sequence[Entry | KeptFile]) -> int:
    return sum(entry.size for entry in found)


def _when(found: Sequence[Entry]) -> datetime:
    latest = max(entry.used for entry in found) if found else time.time()
    return datetime.fromtimestamp(latest).astimezone().replace(microsecond=0)
