"""A fake of the one seam, and a small bundle folder around it."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from handlens_runtime.bundle import Bundle, seal
from handlens_runtime.engine import Engine

TILE, TOKENS, WIDTH, CONTEXT, CHUNK = 16, 4, 8, 512, 16
VISION_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

RECIPE = {
    "backends": ["onnx"],
    "bits": 4,
    "group": 32,
    "head_bits": 8,
    "vision_bits": 8,
    "embedding_bits": 8,
    "context": 64,
    "chunk": 4,
    "max_portable": 0.5,
}


class FakeBackend:
    """A "language model" whose logits depend on every row up to the last: a wrong, missing or stale row shows."""

    name = "onnx"
    warnings = ()

    def __init__(self, vocab_size: int, context: int) -> None:
        self.vocab_size = vocab_size
        self.script: list[int] | None = None
        """Ids to say, one after each other, from the first chance on; None lets the hash of the rows speak."""
        self.cache = np.full((context, WIDTH), np.nan, np.float32)
        self.kv_bytes = self.cache.nbytes
        self.embeddings = np.zeros((16, TOKENS, WIDTH), np.float32)
        self.calls: list[tuple[str, int, int]] = []
        """("encode", 0, tiles) and ("decode", position, rows), in order."""
        self.on_call = lambda: None

    def _note(self, name: str, position: int, count: int) -> None:
        self.calls.append((name, position, count))
        self.on_call()

    def encode(self, tiles):  # (n, 3, t, t)
        self._note("encode", 0, len(tiles))
        assert tiles.shape[1:] == (3, TILE, TILE) and tiles.dtype == np.float32
        features = tiles.reshape(len(tiles), TOKENS, -1)[:, :, :WIDTH]
        # One output buffer for all calls, as a program bound to its outputs has.
        self.embeddings[: len(tiles)] = features + np.arange(TOKENS, dtype=np.float32)[None, :, None]
        return self.embeddings[: len(tiles)], features

    def release_encoder(self):
        self._note("release", 0, 0)

    def embed(self, ids):
        assert ids.dtype == np.int64 and ids.ndim == 1
        rows = np.sin(ids[:, None] * np.arange(1, WIDTH + 1)).astype(np.float32)
        rows.flags.writeable = False
        return rows

    def decode(self, rows, position):
        self._note("decode", position, len(rows))
        assert position + len(rows) <= len(self.cache), "past the context"
        self.cache[position : position + len(rows)] = rows
        seen = self.cache[: position + len(rows)]
        assert not np.isnan(seen).any(), "a position was left out"
        logits = np.random.default_rng(zlib.crc32(seen.tobytes())).normal(size=self.vocab_size).astype(np.float32)
        if self.script is not None:
            # What was said stands at the end of the rows: the script goes on after its longest such beginning.
            said = max(
                k
                for k in range(min(len(self.script), len(seen)) + 1)
                if k == 0 or np.array_equal(seen[-k:], self.embed(np.array(self.script[:k])))
            )
            logits[self.script[min(said, len(self.script) - 1)]] = 100
        return logits


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and the special tokens of the templates above."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|im_start|>", "<|im_end|>", "<image>")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def manifest_of(files: dict[str, bytes], stop_id: int, vocab_size: int, vision: bool, causal: bool) -> dict:
    decoder = {"file": "onnx/decoder.onnx", "inputs": [], "outputs": [], "nodes": 1, "delegated": 1}
    image = {
        "tiling": "relaxed",
        "tile_size": TILE,
        "max_tiles": 9,
        "thumbnail": "last",
        "tokens_per_tile": TOKENS,
        "image_token": "<image>",
        "placeholder": "<image>",
        "row_end": "\n",
    }
    return {
        "format_version": 1,
        "name": "fake",
        "family": "fake",
        "sizes": {
            **{"vocab_size": vocab_size, "width": WIDTH, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": WIDTH},
            **{"context": CONTEXT, "chunk": CHUNK, "max_chunk": CHUNK if causal else 128, "parameters": 1},
        },
        "image": image if vision else None,
        "chat": {"template": VISION_TEMPLATE if vision else TEXT_TEMPLATE, "stop_ids": [stop_id]},
        "causal": causal,
        "quantization": {"method": "rounding-1", "recipe": RECIPE, "kv": "float", "parts": {}},
        "backends": {"onnx": {"decoder": decoder, "files": ["onnx/decoder.onnx", "onnx/decoder.onnx.data"]}},
        "memory": {"weights": {}, "kv_cache": 1, "peak": 1},
        "versions": {},
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }


@pytest.fixture
def make_folder(tmp_path):
    """Write a bundle folder; `change` edits the manifest before it is sealed."""

    def make(name="bundle", vision=True, causal=True, change=lambda manifest: None) -> Path:
        tokenizer = byte_tokenizer()
        files = {
            "tokenizer.json": tokenizer.to_str().encode(),
            "onnx/decoder.onnx": b"graph",
            "onnx/decoder.onnx.data": bytes(range(64)),
        }
        end = tokenizer.token_to_id("<|im_end|>")
        manifest = manifest_of(files, end, tokenizer.get_vocab_size(), vision, causal)
        change(manifest)
        folder = tmp_path / name
        content = json.dumps(manifest).encode()
        for path, data in {**files, "manifest.json": content, "manifest.sha256": seal(content)}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder

    return make


@pytest.fixture
def make_engine(make_folder):
    """An engine over a fresh bundle folder and its own fake backend."""

    def make(script=None, vision=True, causal=True, change=lambda manifest: None, **engine_options) -> Engine:
        bundle = Bundle.load(make_folder(vision=vision, causal=causal, change=change))
        backend = FakeBackend(bundle.manifest.sizes.vocab_size, bundle.manifest.sizes.context)
        engine = Engine(bundle, backend, **engine_options)
        if script is not None:
            backend.script = [*engine.tokenizer.encode(script), *bundle.manifest.chat.stop_ids]
        return engine

    return make


@pytest.fixture
def resident() -> Callable[[Path], int]:
    """Bytes of this process's mappings of a file that are in memory."""

    def measured(path: Path) -> int:
        size, ours = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                ours = line.endswith(f" {path}")
            elif ours and line.startswith("Rss:"):
                size += 1024 * int(line.split()[1])
        return size

    return measured
