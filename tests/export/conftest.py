"""Whole bundles of tiny checkpoints, which take half a minute each to export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Exported:
    """A checkpoint and what was made of it; not to be written to."""

    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="session")
def exported(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """`exported(family)`: its tiny checkpoint and the default recipe's bundle, both backends, made once a worker.

    Tests that ask for the same family belong to the group `bundle-<family>`, so that one worker runs them all.
    """
    made: dict[str, Exported] = {}

    def of(family: str) -> Exported:
        if family not in made:
            from handlens_export.pipeline import export
            from handlens_export.recipe import Recipe

            folder = tmp_path_factory.mktemp(family)
            checkpoint = tiny_checkpoint(family, folder / "checkpoint")
            export(checkpoint, folder / "bundle", Recipe())
            made[family] = Exported(checkpoint, folder / "bundle")
        return made[family]

    return of
