"""`--bits auto`: as few bits as the gate lets pass, tried from few to many."""

from __future__ import annotations

from dataclasses import replace
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

    Each try that fails is a sentence to `warn`. Layers whose bits do not change are not made again. Raises as `export`
    does; GateError where even eight bits answer too few questions.
    """
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
                replace(recipe, bits=int(bits), layer_bits=()) if bits in (4, 8) else recipe,
                lora=lora,
                calibration=calibration,
                target_bits=None if bits in (4, 8) else bits,
                gate=gate,
                force=force,
                jobs=jobs,
                progress=tell,
                warn=once if warn is not None else None,
            )
        except GateError as error:
            if bits == TRIED[-1]:
                raise GateError(error.found, "eight bits are all there are: ask for less") from error
            once(f"{error.found} with {bits:g} bits a weight; more are tried.")
    raise AssertionError("the last try returns or raises")
