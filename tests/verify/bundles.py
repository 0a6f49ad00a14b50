"""The bundles that checks share, exported once per state of the exporter and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from handlens_export import materials, pipeline, presets
from handlens_export.recipe import Recipe
from handlens_runtime.verdicts import cache_folder

ROOT = Path(__file__).resolve().parents[2]
TREES = ("export", "runtime")
Value = TypeVar("Value")


def digest(paths: Iterable[Path]) -> str:
    """sha256 over the names and contents of files and of all Python files in folders."""
    state = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            content = file.read_bytes()
            state.update(f"{file.relative_to(ROOT)} {len(content)} ".encode() + content)
    return state.hexdigest()[:16]


def verify_folder() -> Path:
    """Where results and bundles of `make verify` are kept."""
    return cache_folder() / "verify"


def _made_by_this_exporter() -> Path:
    """A folder for what the exporter made in its present state; what earlier states left is removed."""
    parent = verify_folder() / "bundles"
    folder = parent / digest(ROOT / tree for tree in TREES)
    for old in parent.glob("*"):
        if old != folder:
            shutil.rmtree(old)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def smollm2_checkpoint() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return materials.fetch("smollm2")


def smollm2(group: int) -> Path:
    """SmolLM2-135M-Instruct, both backends, 4 bits in groups of `group`."""
    return exported(smollm2_checkpoint(), f"smollm2-{group}", Recipe(group=group))


def nano_checkpoint() -> Path:
    """bluelm-v-nano with random weights."""
    folder = _made_by_this_exporter() / "nano-checkpoint"
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        presets.init("bluelm-v-nano", folder, seed=0)
    return folder


def full_checkpoint() -> Path:
    """bluelm-v-3b with random weights, 6 GB."""
    folder = verify_folder() / "bluelm-v-3b"
    if not folder.exists():
        presets.init("bluelm-v-3b", folder)
    return folder


def full_export() -> Path:
    """Where `full_size` leaves the bundle of that checkpoint, both backends, with figures of its export."""
    return _made_by_this_exporter() / "bluelm-v-3b-exported"


def nano() -> Path:
    """bluelm-v-nano, both backends."""
    return exported(nano_checkpoint(), "nano", Recipe())


def exported(source: Path, name: str, recipe: Recipe) -> Path:
    """A bundle, exported unless it is there already."""
    folder = _made_by_this_exporter() / name
    if not folder.exists():
        pipeline.export(source, folder, recipe, progress=_tell(name))
    return folder


def _tell(name: str) -> Callable[[str, float], None]:
    shown: set[str] = set()

    def tell(stage: str, share: float) -> None:
        line = f"exporting {name}: {stage} ({share:.0%})"
        if stage not in shown:
            print(line, file=sys.stderr, flush=True)
        shown.add(stage)

    return tell


def remembered(name: str, compute: Callable[[], Value]) -> Value:
    """A JSON value that several checks need, computed once per state of the exporter."""
    path = _made_by_this_exporter() / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(compute()))
    value: Value = json.loads(path.read_text())
    return value
