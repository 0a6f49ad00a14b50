"""`handlens plan`: what an export and a device will need, and how fast it will be, before any weight is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.interrupt import interruptible
from handlens.cli.light import without_torch
from handlens.cli.outcome import answered
from handlens.cli.progress import duration
from handlens.cli.quiet import without_cpuinfo
from handlens.cli.recipes import (
    BackendOption,
    BitsOption,
    ChunkOption,
    ContextOption,
    EmbeddingBitsOption,
    GroupOption,
    HeadBitsOption,
    KVOption,
    LayerBitsOption,
    MethodOption,
    RotateOption,
    SmoothOption,
    SparsityOption,
    VisionBitsOption,
    recipe_of,
)
from handlens.cli.tables import add_row, plain_table
from handlens.cli.units import bytes_of, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from handlens_export.forecast import Device, Forecast


@answered
def plan(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CKPT", help="Checkpoint folder, or a GGUF file.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Device to predict speed on; 'list' names them.")
    ] = None,
    image: Annotated[str, typer.Option(metavar="WxH", help="Pixels of the prompt's picture.")] = "768x1536",
    text: Annotated[int, typer.Option(help="Tokens of the prompt beside the picture.")] = 64,
    kept: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the prompt, what layers keep with --sparsity; 'inspect' says it.")
    ] = 0.5,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory on the device, such as 2.2GB.", show_default=False)
    ] = None,
    ttft: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Most time from picture to first token.", show_default=False),
    ] = None,
    backend: BackendOption = None,
    method: MethodOption = None,
    smooth: SmoothOption = False,
    rotate: RotateOption = False,
    bits: BitsOption = None,
    layer_bits: LayerBitsOption = None,
    group: GroupOption = None,
    head_bits: HeadBitsOption = None,
    vision_bits: VisionBitsOption = None,
    embedding_bits: EmbeddingBitsOption = None,
    kv: KVOption = None,
    sparsity: SparsityOption = None,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine, for --device this-desktop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Predict an export, its bundle and its speed on a device.

    Reads headers, no weights. With --ram or --ttft, choose tile grid, cache and context that keep them, or say why not.
    """
    from handlens import _api

    if checkpoint is None and not calibrate and device != "list":
        raise typer.BadParameter("is missing; give a checkpoint, or --calibrate.", param_hint="CKPT")
    picture, memory = _pixels(image), None if ram is None else bytes_of(ram)
    if ram is not None and memory is None:
        raise typer.BadParameter(f"'{ram}' is no size; give one such as 2.2GB.", param_hint="--ram")
    _api.require_workstation("plan")
    if calibrate:
        with without_cpuinfo(), interruptible():
            measured = _api.calibrate()
        if checkpoint is None:
            _show_device(measured, as_json)
            return
    if device == "list":
        _show_devices(as_json)
        return
    assert checkpoint is not None
    without_torch()
    recipe = recipe_of(
        backend=backend,
        method=method,
        smooth=smooth,
        rotate=rotate,
        bits=bits,
        layer_bits=layer_bits or (),
        group=group,
        head_bits=head_bits,
        vision_bits=vision_bits,
        embedding_bits=embedding_bits,
        kv=kv,
        sparsity=sparsity,
        context=context,
        chunk=chunk,
    )
    with interruptible():
        found = _api.plan(
            checkpoint, recipe, device=device, picture=picture, text=text, kept=kept, memory=memory, first_token=ttft
        )
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _show(found)


def _pixels(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", value)
    if found is None or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
        raise typer.BadParameter(f"'{value}' is no size; give width and height such as 768x1536.", param_hint="--image")
    return int(found[1]), int(found[2])


def _show_device(device: Device, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(device)))
        return
    typer.echo(
        f"{device.name}: reads {size(round(device.bandwidth))} a second, {device.int8 / 1e12:.3f} int8 TOPS, "
        f"{size(device.memory)} of memory, {device.note}."
    )


def _show_devices(as_json: bool) -> None:
    from dataclasses import asdict

    from handlens_export.forecast.device import SHIPPED

    if as_json:
        typer.echo(json.dumps([asdict(device) for device in SHIPPED]))
        return
    for device in SHIPPED:
        typer.echo(f"{device.name}: {device.note}")
    typer.echo("this-desktop: this machine, after --calibrate")


def _show(found: Forecast) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for title, table in page(found):
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(table)
        console.print()
    if found.device is not None:
        if not found.fits:
            console.print(
                f"Note: that is more than the {size(found.device.memory)} that {found.device.name} gives an app."
            )
        console.print(f"Note: {found.device.name}: {found.device.note}.", markup=False, highlight=False)


def page(found: Forecast) -> Iterator[tuple[str, Table]]:
    """Titles and tables, from top to bottom."""
    grid = f", tiles of at most {found.max_grid[0]}x{found.max_grid[1]}" if found.max_grid else ""
    yield f"{found.name}: context {found.context}, {found.recipe.kv} cache{grid}; predicted, not measured", _host(found)
    yield "Bundle, bytes on disk", _files(found)
    yield "Memory on the device", _memory(found)
    if found.device is not None:
        pictures = f"a picture of {found.tiles} tiles, " if found.tiles else ""
        kept = "" if found.kept is None else f", of which layers keep {found.kept:.0%} (assumed: --kept)"
        yield f"On {found.device.name}: {pictures}{found.prompt_tokens} tokens of prompt{kept}", _speeds(found)


def _host(found: Forecast) -> Table:
    from handlens_export.recipe import LENGTH, SEQUENCES

    table = plain_table("", "")
    table.show_header = False
    add_row(table, "export, peak memory", size(found.host.peak_bytes))
    add_row(table, f"export, time with --jobs {found.host.jobs}", duration(found.host.seconds))
    if found.host.calibrated_seconds:
        names: list[str] = [found.recipe.method] if found.recipe.method != "round" else []
        names += ["smoothing"] if found.recipe.smooth else []
        of = f"of it, {' and '.join(names)} on a calibration set of {SEQUENCES} x {min(LENGTH, found.context)} tokens"
        add_row(table, of, duration(found.host.calibrated_seconds))
    add_row(table, "bundle", size(found.bytes))
    return table


def _files(found: Forecast) -> Table:
    table = plain_table("where", "part", "size")
    for where, parts in found.files.items():
        for part, count in parts.items():
            add_row(table, where, part, size(count))
    return table


def _memory(found: Forecast) -> Table:
    table = plain_table("backend", "weights", "key-value cache", "peak")
    weights = size(sum(found.memory.weights.values()))
    for backend, needs in found.memory.backends.items():
        add_row(table, backend, weights, size(needs.kv_cache), size(needs.peak))
    return table


def _speeds(found: Forecast) -> Table:
    table = plain_table("backend", "vision", "prefill", "first token", "decode", "decode, full context")
    for backend, speed in found.speeds.items():
        add_row(
            table,
            backend,
            f"{speed.vision_seconds:.2f} s",
            f"{speed.prefill_seconds:.2f} s",
            f"{speed.first_token_seconds:.2f} s",
            f"{speed.tokens_per_second:.1f} tok/s",
            f"{speed.tokens_per_second_full:.1f} tok/s",
        )
    return table
