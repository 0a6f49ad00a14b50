"""Write a bundle: beside its place, then renamed, so that it is whole or it is not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handlens_export.errors import TargetError
from handlens_runtime.bundle import MANIFEST, SEAL, seal
from handlens_runtime.golden import GOLDEN, Golden
from handlens_runtime.manifest import FileEntry, Manifest


def check_target(target: Path, force: bool) -> None:
    """Refuse, before any work, a place that cannot be written to. Raises TargetError."""
    if target.exists() or target.is_symlink():
        if not force:
            raise TargetError(f"{target} already exists; give another place, or --force to replace it.")
        if not _replaceable(target):
            raise TargetError(
                f"{target} exists and is not a bundle, so --force does not replace it; give another place."
            )
    # Folders above that are not there yet are made only when there is something to write.
    above = next(folder for folder in target.absolute().parents if folder.exists())
    try:
        Path(tempfile.mkdtemp(".probe", f".{target.name}.", above)).rmdir()
    except OSError as error:
        raise TargetError(f"{above} cannot be written to ({error.strerror}); give another place.") from error


def _replaceable(target: Path) -> bool:
    """A bundle, or an empty folder. Both files count: a browser extension has a manifest.json too."""
    if target.is_symlink() or not target.is_dir():
        return False
    return not any(target.iterdir()) or all((target / name).exists() for name in (MANIFEST, SEAL))


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends, and vanishes when it fails.

        .bundle.x7_q2.partial/    beside the target, one for each export, locked while its export lives
        ├── new/                  what is yielded; renamed to the target
        └── old/                  the bundle that it replaces, until the new one stands

    What an export that was killed left behind is removed first, that of one still at work never. Folders made above
    `target` go again upon a failure. Raises TargetError where the disk is full, or where a `target` appeared that
    was not there at the beginning.
    """
    made: list[Path] = []
    try:
        made = _make_parents(target)
        with _workplace(target) as workplace:
            was_there = target.exists()
            new = workplace / "new"
            new.mkdir()
            yield new
            if target.exists():
                if not was_there:
                    raise TargetError(
                        f"{target} was written by another export meanwhile and is left as it is; "
                        "give another place, or --force to replace it."
                    )
                target.rename(workplace / "old")
            new.rename(target)
    except OSError as error:
        raise TargetError(
            f"{target} could not be written ({error.strerror or error}); make room or give another place, "
            "and export again."
        ) from error
    finally:
        if not target.exists():
            _remove_empty(made)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    # Not a glob: `.bundle.*.partial` would take in those of a target `bundle.2`.
    of_target = re.compile(rf"\.{re.escape(target.name)}\.\w+\.partial")
    for other in target.parent.iterdir():
        if of_target.fullmatch(other.name):
            _sweep(other, target)
    workplace = Path(tempfile.mkdtemp(".partial", f".{target.name}.", target.parent))
    lock = os.open(workplace, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nothing is swept there either
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield workplace
    finally:
        _clear(workplace, target)
        os.close(lock)


def _sweep(workplace: Path, target: Path) -> None:
    """Remove a workplace whose export is dead: its lock, which the system gives back, can be had."""
    lock = None
    with suppress(OSError):  # locked, or gone by now
        lock = os.open(workplace, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if any(workplace.iterdir()):  # an empty one may be about to be locked
            _clear(workplace, target)
    if lock is not None:
        os.close(lock)


def _clear(workplace: Path, target: Path) -> None:
    if not target.exists() and (workplace / "old").exists():
        (workplace / "old").rename(target)
    shutil.rmtree(workplace, ignore_errors=True)


def _make_parents(target: Path) -> list[Path]:
    """The folders above `target` that were not there, deepest first, made."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # someone else's by now
        for folder in folders:
            folder.rmdir()


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Size and hash of every file under `folder`, by its path inside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _entry(path) for path in files}


def write_golden(folder: Path, manifest: Manifest, golden: Golden) -> Manifest:
    """`golden.json`; returns the manifest with it among the files, the others' hashes as they are."""
    (folder / GOLDEN).write_bytes((golden.model_dump_json(indent=1) + "\n").encode())
    files = {**manifest.files, GOLDEN: _entry(folder / GOLDEN)}
    return manifest.model_copy(update={"files": dict(sorted(files.items()))})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """`manifest.json` and the hash that covers it."""
    content = (manifest.model_dump_json(indent=1) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SEAL).write_bytes(seal(content))


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
