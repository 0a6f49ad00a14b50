"""`handlens export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.interrupt import interruptible
from handlens.cli.outcome import answered, complain
from handlens.cli.progress import duration, shown
from handlens.cli.quiet import without_cpuinfo
from handlens.cli.recipes import (
    AutoBitsOption,
    BackendOption,
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
    TargetBitsOption,
    VisionBitsOption,
    recipe_of,
)
from handlens.cli.units import count, size

if TYPE_CHECKING:
    from handlens_runtime.manifest import Manifest


@answered
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint folder, or a GGUF file.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Bundle folder to write.", show_default=False)
    ],
    backend: BackendOption = None,
    method: MethodOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text or questions (as in eval) to measure on.", show_default="a small set"),
    ] = None,
    smooth: SmoothOption = False,
    rotate: RotateOption = False,
    bits: AutoBitsOption = None,
    target_bits: TargetBitsOption = None,
    layer_bits: LayerBitsOption = None,
    group: GroupOption = None,
    head_bits: HeadBitsOption = None,
    vision_bits: VisionBitsOption = None,
    embedding_bits: EmbeddingBitsOption = None,
    kv: KVOption = None,
    sparsity: SparsityOption = None,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    max_portable: Annotated[
        float | None,
        typer.Option(help="Share of a program's nodes left to slow kernels above which to fail.", show_default="0.5"),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="DIR", help="LoRA folder to merge into the weights.", show_default=False)
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(metavar="SET", help="Questions that the programs must answer, as in eval.", show_default=False),
    ] = None,
    gate_accuracy: Annotated[
        float | None, typer.Option(help="Least share of exact answers, or there is no bundle.", show_default="0.9")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Programs lowered at once.", show_default="as many as there are cores")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Turn a checkpoint into a bundle that a phone runs."""
    if gate_accuracy is not None and gate is None:
        raise typer.BadParameter("needs questions; give --gate too.", param_hint="--gate-accuracy")
    auto = bits == "auto"
    if bits is not None and not auto and not bits.isdecimal():
        raise typer.BadParameter(f"'{bits}' is neither a number of bits nor auto.", param_hint="--bits")
    if target_bits is not None and bits is not None:
        raise typer.BadParameter("stands in place of --bits; give one of them.", param_hint="--target-bits")
    from handlens import _api

    _api.require_workstation("export")
    from handlens_export.gate import Gate

    recipe = recipe_of(
        backend=backend,
        method=method,
        smooth=smooth,
        rotate=rotate,
        bits=None if bits is None or auto else int(bits),
        layer_bits=layer_bits or (),
        group=group,
        head_bits=head_bits,
        vision_bits=vision_bits,
        embedding_bits=embedding_bits,
        kv=kv,
        sparsity=sparsity,
        context=context,
        chunk=chunk,
        max_portable=max_portable,
    )
    began = time.monotonic()
    warnings: list[str] = []
    try:
        with without_cpuinfo(), interruptible(), shown() as progress:
            manifest = _api.export(
                checkpoint,
                output,
                recipe,
                lora=lora,
                calibration=calibration,
                target_bits="auto" if auto else target_bits,
                gate=gate,
                gate_accuracy=Gate.accuracy if gate_accuracy is None else gate_accuracy,
                force=force,
                jobs=jobs,
                progress=progress,
                warn=warnings.append,
            )
    finally:
        for warning in warnings:  # once the progress bar is gone
            complain(warning)
    _report(output, manifest, time.monotonic() - began, warnings, as_json)


def _report(output: Path, manifest: Manifest, seconds: float, warnings: list[str], as_json: bool) -> None:
    total = sum(entry.size for entry in manifest.files.values())
    if as_json:
        outcome = {
            "bundle": str(output),
            "seconds": round(seconds, 2),
            "bytes": total,
            "warnings": warnings,
            "manifest": manifest.model_dump(mode="json"),
        }
        typer.echo(json.dumps(outcome))
        return
    typer.echo(
        f"{output}: {manifest.name}, {count(manifest.sizes.parameters)} parameters, {size(total)} for "
        f"{' and '.join(manifest.backends)}, in {duration(seconds)}."
    )
    if manifest.gate is not None:
        passed = ", ".join(f"{score.exact_match:.1%} on {name}" for name, score in manifest.gate.backends.items())
        typer.echo(f"Gate: of {manifest.gate.questions} questions, answered exactly: {passed}.")
    typer.echo(f'Next: handlens run {output} "…"')
