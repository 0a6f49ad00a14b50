"""Read a GGUF file (llama.cpp's format) as if it were a transformers checkpoint; architectures llama and qwen2.

Tensors stay memory-mapped and quantized; `read` dequantizes one. llama.cpp stores a llama's query and key rows in
the order its own rotary embedding wants, pairs side by side; they are put back into transformers' two halves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, ReaderTensor
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.gguf_config import hf_config, tensor_names
from handlens_export.checkpoint.gguf_tokenizer import end_ids, tokenizer_config, tokenizer_json
from handlens_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

BROKEN = (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, RecursionError)
"""What gguf's reader raises on a file that is cut short or not its own."""
AS_STORED = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
}
"""Stored type -> the same in torch."""


class _BoundedReader(GGUFReader):  # type: ignore[misc]  # gguf is read without its types
    """gguf's reader, which slices beyond the end of a file without a word, made to raise there."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, but its header goes on to {end}")
        order = self.byte_order if override_order is None else override_order
        # gguf's own slices and views of a memory map take ten times as long: seconds, for a vocabulary's strings.
        read: Any = np.frombuffer(self.data, np.dtype(dtype).newbyteorder(order), int(count), int(offset))
        return read


@dataclass(frozen=True)
class _Entry:
    tensor: ReaderTensor
    heads: int | None
    """Heads whose rows are to be put back into two halves, None where rows stay."""


class GgufSource:
    """A TensorSource over a GGUF file, under transformers' tensor names."""

    def __init__(self, path: Path, entries: dict[str, _Entry]) -> None:
        """`entries` by transformers' name."""
        self._path, self._entries = path, entries

    def names(self) -> Iterator[str]:
        """All tensor names, in the file's order."""
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header alone."""
        return _shape(self._entries[name].tensor)

    def read(self, name: str) -> Tensor:
        """One tensor: dequantized to float32, or bfloat16 / float16 where stored so."""
        entry = self._entries[name]
        weight = _weight(entry.tensor).reshape(self.shape(name))
        return weight if entry.heads is None else _halves(weight, entry.heads)

    def digest(self, name: str) -> str:
        """sha256 over stored type, shape, order of rows and bytes."""
        entry = self._entries[name]
        head = f"{entry.tensor.tensor_type.name} {self.shape(name)} {entry.heads} "
        state = hashlib.sha256(head.encode())
        state.update(np.ascontiguousarray(entry.tensor.data).view(np.uint8).data)
        return state.hexdigest()


def read_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file `path`; CheckpointError in one sentence where it cannot be read or is refused."""
    reader = _open(path)
    try:
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except BROKEN as error:
        raise _damaged(path, error) from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _refuse_types(path, tensors)
    rope_freqs = tensors.pop("rope_freqs.weight", None)
    shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
    config = hf_config(path, metadata, shapes, _weight(rope_freqs).numpy() if rope_freqs is not None else None)
    entries = {
        hf_name: _Entry(tensors[name], _permuted_heads(name, config))
        for name, hf_name in tensor_names(path, config, shapes).items()
    }
    text_config = tokenizer_config(metadata)
    generation = {"bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"), "eos_token_id": end_ids(metadata)}
    return Checkpoint(
        path=path,
        config=config,
        tensors=GgufSource(path, entries),
        tokenizer_json=tokenizer_json(path, metadata),
        tokenizer_config=text_config,
        chat_template=metadata.get("tokenizer.chat_template"),
        generation_config={key: value for key, value in generation.items() if value not in (None, [])},
    )


def _open(path: Path) -> _BoundedReader:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file; give a checkpoint folder or a GGUF file.")
    try:
        reader = _BoundedReader(os.fspath(path))
    except BROKEN as error:
        raise _damaged(path, error) from None
    if reader.endianess != GGUFEndian.LITTLE:
        raise CheckpointError(f"{path} is a big-endian GGUF file; convert it with gguf's gguf-convert-endian first.")
    return reader


def _refuse_types(path: Path, tensors: dict[str, ReaderTensor]) -> None:
    for tensor in tensors.values():
        kind = tensor.tensor_type
        block = np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8)
        try:
            # Plain types keep their own dtype; a block of zeros shows whether gguf can unpack the others.
            if kind not in AS_STORED:
                dequantize(block, kind)
        except (NotImplementedError, ValueError):
            raise CheckpointError(
                f"{path} stores {tensor.name} as {kind.name}, which the gguf package cannot dequantize; "
                "give a file of another type, such as Q8_0 or F16."
            ) from None


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape.tolist()))  # ggml lists the fastest dimension first


def _weight(tensor: ReaderTensor) -> Tensor:
    import torch  # not before weights are read: headers have no need of it

    name = AS_STORED.get(tensor.tensor_type)
    if name is None:
        return torch.from_numpy(np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    dtype: torch.dtype = getattr(torch, name)
    return torch.from_numpy(np.array(tensor.data).view(np.uint8)).view(dtype)  # a copy: the mapping is read-only


def _permuted_heads(name: str, config: dict[str, Any]) -> int | None:
    if config["model_type"] != "llama":
        return None
    kind = name.rsplit(".", 2)[-2]
    return {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(kind)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from pairs side by side (0, d/2, 1, d/2 + 1, …) back to 0, 1, …, d - 1."""
    rows = weight.shape[0]
    paired = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return paired.transpose(1, 2).reshape(weight.shape)


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole GGUF file ({error}); download or copy it again.")
