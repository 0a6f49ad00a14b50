"""Tensors of one or several safetensors files, memory-mapped; knows nothing of what they are for.

A file is opened for each read and let go with the tensor, so that pages of weights already used do not count
as this process's memory while a later layer is worked on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from handlens_export.checkpoint.json_file import read_json
from handlens_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Stored type -> the torch type that `read` gives."""


@dataclass(frozen=True)
class _Entry:
    file: Path
    shape: tuple[int, ...]
    dtype: str


class SafetensorsSource:
    """A TensorSource over safetensors files; CheckpointError names the file that is missing or damaged."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Reads the headers, no tensor."""
        self._entries: dict[str, _Entry] = {}
        for file in files:
            for name, entry in _header(file):
                if name in self._entries:
                    raise CheckpointError(
                        f"Tensor {name} stands in both {self._entries[name].file} and {file}; "
                        "save the checkpoint again."
                    )
                self._entries[name] = entry

    def names(self) -> Iterator[str]:
        """All tensor names, in the files' order."""
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header alone."""
        return self._entries[name].shape

    def read(self, name: str) -> Tensor:
        """One tensor: float32, or bfloat16 / float16 where stored so."""
        import torch  # not before weights are read: headers have no need of it

        entry = self._entries[name]
        if entry.dtype not in FLOATS:
            raise CheckpointError(
                f"Tensor {name} in {entry.file} is stored as {entry.dtype}, but weights must be in "
                f"{', '.join(FLOATS)}; give the checkpoint as it was before quantization."
            )
        dtype: torch.dtype = getattr(torch, FLOATS[entry.dtype])
        return self._stored(name).to(dtype)

    def digest(self, name: str) -> str:
        """sha256 over stored type, shape and bytes."""
        import torch

        entry = self._entries[name]
        state = hashlib.sha256(f"{entry.dtype} {entry.shape} ".encode())
        state.update(self._stored(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return state.hexdigest()

    def _stored(self, name: str) -> Tensor:
        file = self._entries[name].file
        try:
            with safe_open(file, framework="pt") as handle:
                tensor: Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
        return tensor


def open_folder(folder: Path) -> SafetensorsSource:
    """The weights of a checkpoint folder: `model.safetensors`, or the shards that its index names."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        return SafetensorsSource([single])
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files; save the checkpoint again.")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names {shard}, which is not a file beside it; save the checkpoint again.")
        if not (folder / shard).exists():
            raise CheckpointError(f"{index} names {shard}, which is not there; download or copy that file too.")
    source = SafetensorsSource(folder / shard for shard in shards)
    absent = sorted(set(weight_map) - set(source.names()))
    if absent:
        raise CheckpointError(
            f"{folder / weight_map[absent[0]]} has no tensor {absent[0]}, which {INDEX} places there; "
            "save the checkpoint again."
        )
    return source


def _header(file: Path) -> list[tuple[str, _Entry]]:
    try:
        with safe_open(file, framework="np") as handle:
            slices = ((name, handle.get_slice(name)) for name in handle.keys())  # noqa: SIM118 (not a dict)
            return [(name, _Entry(file, tuple(part.get_shape()), part.get_dtype())) for name, part in slices]
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; copy it from where the checkpoint was saved.") from None
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} is not a whole safetensors file ({error}); download or copy it again.")
