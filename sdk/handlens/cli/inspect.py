"""`handlens inspect`: what is in a bundle. Reads the manifest and the files' hashes, never a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.outcome import answered
from handlens.cli.tables import add_row, plain_table
from handlens.cli.units import count, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from handlens_runtime.bundle import Bundle
    from handlens_runtime.manifest import Gate, Graph, ImageRule, Manifest

MOST_OPERATORS = 6
"""Operators named per graph in the table; --json has all of them."""


@answered
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Show what a bundle holds.

    Sizes, bits, image rule, programs, files, memory.
    """
    from handlens_runtime.bundle import Bundle

    loaded = Bundle.load(bundle)
    if as_json:
        typer.echo(json.dumps(described(loaded)))
        return
    from rich.console import Console

    console = Console()
    # Redirected to a file, a table is as wide as it needs to be: a path must not be broken at column 80.
    if not console.is_terminal:
        console = Console(width=160)
    for title, table in page(loaded):
        # Not the table's own title, which is broken at the table's width.
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(table)
        console.print()
    for warning in loaded.warnings:
        console.print(f"Note: {warning}", markup=False, highlight=False)


def described(bundle: Bundle) -> dict[str, object]:
    """The manifest as plain JSON values, with the folder and the sum of its files."""
    return {
        "bundle": str(bundle.path),
        "bytes": total(bundle.manifest),
        "warnings": list(bundle.warnings),
        "manifest": bundle.manifest.model_dump(mode="json"),
    }


def total(manifest: Manifest) -> int:
    """Bytes of all files that the manifest lists."""
    return sum(entry.size for entry in manifest.files.values())


def page(bundle: Bundle) -> Iterator[tuple[str, Table]]:
    """Titles and tables, from top to bottom."""
    manifest = bundle.manifest
    yield manifest.name, _pairs(_overview(manifest))
    yield "Weights", _parts(manifest)
    exceptions = [(name, line) for name, part in manifest.quantization.parts.items() for line in part.exceptions]
    if exceptions:
        yield "Matrices in another format than their part", _pairs(exceptions)
    if manifest.image is not None:
        yield "Pictures", _pairs(_image_rows(manifest.image))
    yield "Programs", _graphs(manifest)
    yield "Files, sizes and hashes verified", _files(manifest)
    if manifest.gate is not None:
        yield "Gate, passed at export", _gate(manifest.gate)
    yield "Memory on a device, from sizes, not measured", _pairs(_memory_rows(manifest))


def _overview(manifest: Manifest) -> list[tuple[str, str]]:
    sizes = manifest.sizes
    return [
        ("family", manifest.family),
        ("parameters", count(sizes.parameters)),
        ("decoder", f"{sizes.layers} layers, width {sizes.width}, vocabulary {sizes.vocab_size}"),
        ("attention", f"{sizes.heads} heads, {sizes.kv_heads} for keys and values, {sizes.head_dim} wide"),
        ("context", f"{sizes.context} tokens, prompt and answer together"),
        ("prefill", f"{sizes.chunk} tokens a pass" if manifest.causal else "whole prompt in one pass (not causal)"),
        *_sparsity(manifest),
        ("method", f"{manifest.quantization.method}, key-value cache {manifest.quantization.kv}"),
        ("made with", ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.versions.items()))),
        ("size", size(total(manifest))),
    ]


def _sparsity(manifest: Manifest) -> list[tuple[str, str]]:
    chosen = manifest.sparsity
    if chosen is None:
        return []
    said = (
        f"{chosen.method}, tau {chosen.tau:g}: a prompt of {chosen.least_tokens} tokens or more in one pass, of which "
    )
    rows = [("sparsity", f"{said}each layer keeps what matters to it")]
    if chosen.effect is not None:
        tokens, kept = chosen.effect.prompt_tokens, chosen.effect.kept
        share = f"{sum(kept) / len(kept) / tokens:.0%} ({min(kept) / tokens:.0%} to {max(kept) / tokens:.0%} by layer)"
        apart = f"{chosen.effect.divergence:.3f} nats from keeping all"
        rows.append(("measured", f"{share} of a prompt of {tokens} tokens kept, {apart}"))
    return rows


def _parts(manifest: Manifest) -> Table:
    table = plain_table("part", "bits", "group", "grid", "parameters", "bytes", "exceptions")
    for name, part in manifest.quantization.parts.items():
        grid = "float" if part.bits == 32 else "symmetric" if part.symmetric else "asymmetric"
        group = "-" if part.bits == 32 else "row" if part.group is None else str(part.group)
        add_row(
            table,
            name,
            str(part.bits),
            group,
            grid,
            count(part.parameters),
            size(part.bytes),
            str(len(part.exceptions)),
        )
    return table


def _image_rows(rule: ImageRule) -> list[tuple[str, str]]:
    rows = [
        ("tiling", f"{rule.tiling}, at most {rule.max_tiles} tiles of {rule.tile_size} x {rule.tile_size} pixels"),
        ("thumbnail", rule.thumbnail),
        ("tokens a tile", str(rule.tokens_per_tile)),
        ("resampling", f"{rule.resampling}, mean {rule.mean}, std {rule.std}"),
        ("refused above", f"{rule.max_pixels:,} pixels"),
    ]
    if rule.tiling == "relaxed":
        rows.insert(1, ("alpha", str(rule.alpha)))
    return rows


def _graphs(manifest: Manifest) -> Table:
    table = plain_table("backend", "role", "file", "delegated", "not delegated")
    for backend, graphs in manifest.backends.items():
        for role, graph in (("vision", graphs.vision), ("embedding", graphs.embedding), ("decoder", graphs.decoder)):
            if graph is not None:
                add_row(table, backend, role, _where(graph), f"{graph.delegated} of {graph.nodes}", _left_over(graph))
    return table


def _where(graph: Graph) -> str:
    return f"{graph.file}:{graph.method}" if graph.method else graph.file


def _left_over(graph: Graph) -> str:
    if not graph.not_delegated:
        return "-"
    most = sorted(graph.not_delegated.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{number} {operator}" for operator, number in most[:MOST_OPERATORS])
    return named if len(most) <= MOST_OPERATORS else f"{named}, and {len(most) - MOST_OPERATORS} kinds more"


def _files(manifest: Manifest) -> Table:
    table = plain_table("file", "size", "sha256")
    for name, entry in sorted(manifest.files.items()):
        add_row(table, name, size(entry.size), f"{entry.sha256[:12]}…")
    return table


def _gate(gate: Gate) -> Table:
    table = plain_table("backend", "questions", "exact match", "asked for", "characters right", "set's sha256")
    for backend, score in gate.backends.items():
        add_row(
            table,
            backend,
            str(gate.questions),
            f"{score.exact_match:.1%}",
            f"{gate.accuracy:.1%}",
            f"{score.character_accuracy:.1%}",
            f"{gate.set_sha256[:12]}…",
        )
    return table


def _memory_rows(manifest: Manifest) -> list[tuple[str, str]]:
    memory = manifest.memory
    weights = [(f"weights, {part}", size(number)) for part, number in memory.weights.items()]
    if not memory.backends:
        return [*weights, ("key-value cache", size(memory.kv_cache)), ("peak", size(memory.peak))]
    needed = [
        row
        for backend, needs in memory.backends.items()
        for row in ((f"key-value cache, {backend}", size(needs.kv_cache)), (f"peak, {backend}", size(needs.peak)))
    ]
    return [*weights, *needed]


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    table = plain_table("", "")
    table.show_header = False
    for row in rows:
        add_row(table, *row)
    return table
