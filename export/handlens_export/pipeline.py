"""Checkpoint to bundle, in reading order: read, transform, quantize, lower, bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from handlens_export.recipe import Recipe
from handlens_runtime.manifest import Manifest

Progress = Callable[[str, float], None]
"""Called with a stage's name ("read", "quantize", "lower executorch", …) and the share of the whole done, 0 to 1."""


def export(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    lora: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export the checkpoint folder or GGUF file `source` into the bundle folder `target`; returns its manifest.

    Raises CheckpointError, UnsupportedError, TargetError. `target` is written beside and renamed: it is whole or
    it is not there. An existing `target` is replaced only with `force`, and only once the new one is whole.
    `lora` is a PEFT folder whose adapter is merged as tensors are read.
    """
    raise SystemExit("being built")
