"""Write a bundle: beside its place, then renamed, so that it is whole or it is not there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
        probe = above / f".{target.name}.probe"
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        raise TargetError(f"{above} cannot be written to ({error.strerror}); give another place.") from error


def _replaceable(target: Path) -> bool:
    """A bundle, or an empty folder. Both files count: a browser extension has a manifest.json too."""
    if target.is_symlink() or not target.is_dir():
        return False
    return not any(target.iterdir()) or all((target / name).exists() for name in (MANIFEST, SEAL))


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that becomes it when the block ends, and vanishes when it fails.

    What an export that was killed left behind is removed first. Raises TargetError where the disk is full.
    """
    partial, replaced = _beside(target, "partial"), _beside(target, "replaced")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    except OSError as error:
        raise TargetError(
            f"{target} could not be written ({error.strerror or error}); make room or give another place, "
            "and export again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.exists() and replaced.exists():
            replaced.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)


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


def _beside(target: Path, purpose: str) -> Path:
    return target.parent / f".{target.name}.{purpose}"
