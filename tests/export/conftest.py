"""Whole bundles of tiny checkpoints, which take half a minute each to export."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class Exported:
    """A checkpoint and what was made of it; not to be written to."""

    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="session")
def exported(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """`exported(family)`: its tiny checkpoint and the default recipe's bundle, both backends, made once a run.

    All test processes of a run share them: one makes a bundle while others that want it wait.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def of(family: str) -> Exported:
        made = Exported(folder / f"exported-{family}" / "checkpoint", folder / f"exported-{family}" / "bundle")
        with FileLock(folder / f"exported-{family}.lock"):
            if not made.bundle.exists():  # it appears whole, or not at all
                from handlens_export.pipeline import export
                from handlens_export.recipe import Recipe

                export(tiny_checkpoint(family, made.checkpoint), made.bundle, Recipe())
        return made

    return of


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own, `cache` in its `tmp_path`, in which finished layers are kept."""
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "")
