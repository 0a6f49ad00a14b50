"""`--bits auto`: as few bits, from four on, as the gate lets pass, tried from few to many."""

from __future__ import annotations

from pathlib import Path

from handlens_export.errors import GateError, UnsupportedError
from handlens_export.gate import Gate
from handlens_export.pipeline import Progress, Warn, export
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import Manifest

TRIED = (4.0, 4.5, 5.0, 6.0, 8.0)
"""Bits a weight of the decoder's linears, on average, from the first that is tried to the last."""


def export_until_passed(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    gate: Gate | None,
    lora: Path | None = None,
    calibration: Path | None = None,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Export as `pipeline.export` does, with more bits for the layers that need them most until the gate passes.

    Each try that fails is a sentence to `warn`. Layers that are rounded on their own, as by `round`, are not made again
    where their bits do not change. Raises as `export` does; GateError where even eight bits answer too few questions.
    """
    if recipe.layer_bits:
        raise UnsupportedError("--bits auto chooses the bits of layers itself; leave out --layer-bits, or it.")
    if gate is None:
        raise UnsupportedError("--bits auto stops at what a gate lets pass; give its questions with --gate.")
    said: set[str] = set()
    for index, bits in enumerate(TRIED):

        def tell(stage: str, share: float, before: int = index, bits: float = bits) -> None:
            if progress is not None:
                progress(f"{bits:g} bits: {stage}", (before + share) / len(TRIED))

        def once(sentence: str) -> None:
            if warn is not None and sentence not in said:
                said.add(sentence)
                warn(sentence)

        try:
            return export(
                source,
                target,
                recipe,
                lora=lora,
                calibration=calibration,
                target_bits=bits,
                gate=gate,
                force=force,
                jobs=jobs,
                progress=tell,
                warn=once if warn is not None else None,
            )
        except GateError as error:
            if bits == TRIED[-1]:
                raise GateError(
                    error.found,
                    "eight bits are all there are for the decoder's linears: ask for less, or give --head-bits, "
                    "--vision-bits, --embedding-bits or --kv more",
                ) from error
            once(f"With {bits:g} bits a weight: {error.found}; more are tried.")
    raise AssertionError("the last try returns or raises")
