"""Finished stages, put in and found again: named tensors under a key. What they are is its user's business."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from torch import Tensor

from handlens_export.errors import TargetError
from handlens_export.stage_cache import tensor_file
from handlens_export.stage_cache.entries import (
    PARTIAL,
    SUFFIX,
    entries,
    hold,
    remove,
    stage_folder,
    sweep,
    touch,
    trim,
)
from handlens_runtime.kept import BOUND_VARIABLE, size_bound

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What a folder says in which nothing may be written."""

Stage = dict[str, Tensor]


class StageCache:
    """An export's view of the cache: what it was given is held, and not removed by others, until it is closed."""

    def __init__(self, bound: int | None = None) -> None:
        """`bound`: bytes that entries may take; the environment's where left out, none with 0.

        Raises OptionError where the size bound in the environment is no number.
        """
        self._held = ExitStack()
        self._bound = size_bound() if bound is None else bound
        self._folder: Path | None = None
        self.refusal: str | None = None
        """Why nothing is kept although it should be: one sentence. None where the cache works, or is turned off."""
        if self._bound:
            self._open()

    def __enter__(self) -> StageCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()
        if self._folder is not None:
            trim(self._folder, self._bound)

    @property
    def working(self) -> bool:
        """Whether stages are kept."""
        return self._folder is not None

    def get(self, key: str) -> Stage | None:
        """The stage of a key, memory-mapped; None where there is none, or only a damaged one, which is removed."""
        if self._folder is None:
            return None
        for path in sorted(self._folder.glob(f"{key}-*{SUFFIX}")):
            file = hold(path)
            if file is None:
                continue
            if f"{key}-{_sha256(file)}{SUFFIX}" == path.name:
                touch(path)
                return tensor_file.read(self._held.enter_context(file))
            file.close()
            remove(path)
        return None

    def put(self, key: str, stage: Stage, about: Mapping[str, str]) -> Stage:
        """Keep a stage; returns it memory-mapped, so that the one in memory can go. Raises TargetError if the disk
        is full even after entries that nobody uses were removed.
        """
        if self._folder is None:
            return stage
        trim(self._folder, max(0, self._bound - _nbytes(stage)))
        try:
            try:
                file = self._write(self._folder, key, stage, about)
            except OSError as error:
                if error.errno not in FULL or not entries(self._folder):
                    raise
                trim(self._folder, 0)
                file = self._write(self._folder, key, stage, about)
        except OSError as error:
            if error.errno in CLOSED:
                self._refuse(error)
                return stage
            raise TargetError(
                f"{self._folder} could not be written ({error.strerror or error}); make room there, or name another "
                f"folder with HANDLENS_CACHE or none with {BOUND_VARIABLE}=0, and export again: "
                "what is finished is kept."
            ) from error
        return tensor_file.read(self._held.enter_context(file))

    def _open(self) -> None:
        try:
            folder = stage_folder()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                self._folder = folder
            sweep(folder)
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            if isinstance(error, OSError) and error.errno in FULL:
                self._folder = stage_folder()  # what is finished can be read, and old entries make room
            else:
                self._refuse(error)

    def _refuse(self, error: OSError | RuntimeError) -> None:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self._folder = None
        self.refusal = (
            f"Finished layers are not kept, for the cache folder cannot be written to ({reason}): an export that is "
            "stopped begins anew; name another folder with HANDLENS_CACHE."
        )

    def _write(self, folder: Path, key: str, stage: Stage, about: Mapping[str, str]) -> BinaryIO:
        """A finished entry, open and held."""
        with _partial(folder) as (path, file):
            sha256 = tensor_file.write(file, stage, about)
            target = folder / f"{key}-{sha256}{SUFFIX}"
            reader = path.open("rb")
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)  # the writer's lock would refuse the reader's
                fcntl.flock(reader, fcntl.LOCK_SH)
            try:
                os.replace(path, target)
            except OSError:
                reader.close()
                raise
        return reader


@contextmanager
def _partial(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file, locked while it is written; removed unless it was renamed meanwhile."""
    handle, name = tempfile.mkstemp(PARTIAL, ".", folder)
    path = Path(name)
    with os.fdopen(handle, "w+b") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield path, cast(BinaryIO, file)
        finally:
            with suppress(OSError):
                path.unlink()


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _nbytes(stage: Stage) -> int:
    return sum(tensor.nbytes for tensor in stage.values())
