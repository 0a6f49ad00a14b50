"""Whole bundles of tiny checkpoints, which take half a minute each to export; pages to train a reader on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from handlens_export.reader.draw import Mix


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


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """The font that Pillow carries, as a file."""
    from PIL import ImageFont

    face = ImageFont.load_default(12)
    assert isinstance(face, ImageFont.FreeTypeFont)
    assert isinstance(face.path, BytesIO)
    path = tmp_path / "default.ttf"
    path.write_bytes(face.path.getvalue())
    return path


@pytest.fixture
def mix(font: Path, monkeypatch: pytest.MonkeyPatch) -> Mix:
    """Pages of three layouts in Pillow's font."""
    from handlens_export.reader import examples
    from handlens_export.reader.draw import Mix
    from handlens_export.reader.fonts import Family

    monkeypatch.setattr(examples, "font_files", lambda family: (font,))
    family = Family("Any", "sans", "fontpkg-any==1", "0" * 64, ("any.ttf",), "OFL-1.1", held_out=False)
    return Mix("test", ("receipt", "strings", "shapes"), (family,), chat=0.0, conversations=0.0)
