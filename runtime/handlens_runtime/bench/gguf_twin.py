"""A GGUF file of a bundle's shape, for llama.cpp: same layers, widths, vocabulary and bits, random weights.

Speed does not depend on what the weights are. The architecture is `llama` whatever the bundle's family: the matrices
are the same, and they are what takes the time. Biases and norms of queries and keys, a vanishing part, are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlens_runtime.errors import OptionError
from handlens_runtime.manifest import Manifest
from handlens_runtime.verdicts import cache_folder

BLOCK = 32
"""Weights of a row that share a float16 scale."""
QUANTIZED = {4: ("Q4_0", 18), 8: ("Q8_0", 34)}
"""Bits -> llama.cpp's type, and bytes of one block."""
SCALE = 0.01


@dataclass(frozen=True)
class Shape:
    """All that a llama-like decoder's speed depends on."""

    vocab_size: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    bits: int
    embedding_bits: int
    head_bits: int


@dataclass(frozen=True)
class Entry:
    """One tensor of the file; a vector has one row and stays in float32."""

    name: str
    rows: int
    columns: int
    bits: int

    @property
    def bytes(self) -> int:
        """As stored."""
        return self.rows * (self.columns * 4 if self.bits == 32 else self.columns // BLOCK * QUANTIZED[self.bits][1])


def shape_of(manifest: Manifest) -> Shape:
    """The shape of a bundle's decoder. Raises OptionError for bits and widths that llama.cpp's types do not have."""
    sizes, parts = manifest.sizes, manifest.quantization.parts
    attention = 2 * sizes.width * (sizes.heads + sizes.kv_heads) * sizes.head_dim
    # The manifest has no width of the feed-forward network: it follows from the parameters of a layer, three matrices
    # of it, and what norms and biases add is less than a block.
    mlp_width = (parts["decoder"].parameters // sizes.layers - attention) // (3 * sizes.width) // BLOCK * BLOCK
    embedding = parts["embedding"].bits
    head = (parts["head"].stored_bits or parts["head"].bits) if "head" in parts else embedding
    bits = parts["decoder"].stored_bits or parts["decoder"].bits
    for name, found in (("decoder", bits), ("head", head), ("embedding", embedding)):
        if found == 2:
            raise OptionError(
                f"The {name} has 2 bits, and llama.cpp no format of the same kind; compare a bundle of 4 or 8 bits."
            )
    for name, columns in (("width", sizes.width), ("heads' width", sizes.heads * sizes.head_dim), ("MLP", mlp_width)):
        if columns < BLOCK or columns % BLOCK:
            raise OptionError(
                f"The decoder's {name} is {columns}, but llama.cpp's formats need a multiple of {BLOCK}; "
                "bench this bundle without --vs."
            )
    names = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim")
    return Shape(
        **{name: getattr(sizes, name) for name in names},
        mlp_width=mlp_width,
        bits=bits,
        embedding_bits=embedding,
        head_bits=head,
    )


def entries(shape: Shape) -> Iterator[Entry]:
    """The file's tensors, in order."""
    width, queries, keys = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield Entry("token_embd.weight", shape.vocab_size, width, shape.embedding_bits)
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield Entry(f"blk.{layer}.{norm}.weight", 1, width, 32)
        for name, rows, columns in (
            ("attn_q", queries, width),
            ("attn_k", keys, width),
            ("attn_v", keys, width),
            ("attn_output", width, queries),
            ("ffn_gate", shape.mlp_width, width),
            ("ffn_up", shape.mlp_width, width),
            ("ffn_down", width, shape.mlp_width),
        ):
            yield Entry(f"blk.{layer}.{name}.weight", rows, columns, shape.bits)
    yield Entry("output_norm.weight", 1, width, 32)
    yield Entry("output.weight", shape.vocab_size, width, shape.head_bits)


def step_weights(shape: Shape) -> int:
    """Bytes of weights and scales that one decode step reads: all but the embedding, which is looked up."""
    return sum(entry.bytes for entry in entries(shape) if entry.name != "token_embd.weight")


def row_bytes(shape: Shape) -> int:
    """Keys and values of one token, all layers, in llama.cpp's float16."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * 2


def write(shape: Shape) -> Path:
    """The file in the cache folder, made where it is missing; whole or not there at all."""
    digest = hashlib.sha256(json.dumps(asdict(shape), sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "bench" / f"random-{digest}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            _write(shape, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _write(shape: Shape, path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.mlp_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")  # ids go in, logits come out
    random = np.random.default_rng(0)
    for entry in entries(shape):
        kind = GGMLQuantizationType["F32" if entry.bits == 32 else QUANTIZED[entry.bits][0]]
        like = _content(Entry(entry.name, 1, entry.columns, entry.bits), random)
        size = (entry.columns,) if entry.rows == 1 else (entry.rows, like.shape[-1])
        writer.add_tensor_info(entry.name, size, like.dtype, entry.bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries(shape):  # one at a time: the file may be larger than memory
        writer.write_tensor_data(_content(entry, random))
    writer.close()


def _content(entry: Entry, random: np.random.Generator) -> NDArray[np.generic]:
    """(rows, bytes of a row) of blocks, each its scale and then random integers; float32 (rows, columns) of ones
    where it is a vector, random where it is a matrix.
    """
    if entry.bits == 32:
        if entry.rows == 1:
            return np.ones((1, entry.columns), np.float32)
        return random.standard_normal((entry.rows, entry.columns), np.float32) * np.float32(SCALE)
    blocks = random.integers(0, 256, (entry.rows, entry.columns // BLOCK, QUANTIZED[entry.bits][1]), np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
    return blocks.reshape(entry.rows, -1)
