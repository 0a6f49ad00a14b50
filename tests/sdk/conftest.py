"""A bundle of plain files, and an engine that answers without any program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

import handlens_runtime.engine
from handlens_runtime.bundle import seal
from handlens_runtime.chat import Message
from handlens_runtime.engine import Token
from handlens_runtime.errors import HandLensError
from handlens_runtime.manifest import Manifest
from handlens_runtime.options import Options
from handlens_runtime.stats import Stats

FILES = {"tokenizer.json": b"{}", "onnx/decoder.onnx": b"program"}
PART = {
    "bits": 4,
    "group": 32,
    "parameters": 1_500_000,
    "bytes": 940_000,
    "exceptions": ["head 576: group 64, odd row"],
}
RECIPE = {
    "backends": ["onnx"],
    "bits": 4,
    "group": 32,
    "head_bits": 8,
    "vision_bits": 8,
    "embedding_bits": 8,
    "context": 128,
    "chunk": 32,
    "max_portable": 0.5,
}
MANIFEST = {
    "name": "tiny",
    "family": "llama",
    "sizes": {
        "vocab_size": 99,
        "width": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "context": 128,
        "chunk": 32,
        "max_chunk": 32,
        "parameters": 1_500_000,
    },
    "chat": {"template": "", "stop_ids": [2]},
    "quantization": {"method": "rounding-1", "recipe": RECIPE, "kv": "int8", "parts": {"decoder": PART}},
    "backends": {
        "onnx": {
            "decoder": {
                "file": "onnx/decoder.onnx",
                "inputs": [],
                "outputs": [],
                "nodes": 40,
                "delegated": 37,
                "not_delegated": {"Add": 2, "Gather": 1},
            },
            "files": ["onnx/decoder.onnx"],
        }
    },
    "memory": {
        "weights": {"decoder": 940_000},
        "kv_cache": 65_536,
        "peak": 1_200_000,
        "backends": {"onnx": {"kv_cache": 65_536, "peak": 1_200_000}},
    },
    "versions": {},
}


@pytest.fixture
def manifest() -> Manifest:
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()}
    return Manifest.model_validate({**MANIFEST, "files": entries})


@pytest.fixture
def bundle(tmp_path: Path, manifest: Manifest) -> Path:
    """A whole, sealed bundle whose program is one word."""
    folder = tmp_path / "bundle"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    text = manifest.model_dump_json().encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal(text))
    return folder


@dataclass
class FakeEngine:
    """Says `words` for any conversation, and remembers what it was asked."""

    words: Sequence[str] = ("The ", "answer", " is 42.")
    error: BaseException | None = None
    """Raised after the first word."""
    stats: Stats = field(default_factory=lambda: Stats(prompt_tokens=9, generated_tokens=3, finish="stop"))
    asked: list[tuple[list[Message], Options]] = field(default_factory=list)
    prefilled: list[list[Message]] = field(default_factory=list)
    backend: object = None
    release_encoder: bool = False
    warnings: tuple[str, ...] = ()
    resets: int = 0
    stopped: bool = False

    def generate(self, messages: Sequence[Message], options: Options) -> Iterator[Token]:
        self.asked.append((list(messages), options))
        for i, word in enumerate(self.words):
            if i == 1 and self.error is not None:
                raise self.error
            if self.stopped:
                return
            yield Token(i, word, -0.5)

    def prefill(self, messages: Sequence[Message]) -> None:
        self.prefilled.append(list(messages))
        if "nowhere" in str(messages[-1].images[-1]):
            raise HandLensError("nowhere.jpg does not exist.")

    def stop(self) -> None:
        self.stopped = True

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Stands in for every engine that the command line makes."""
    fake = FakeEngine()

    def make(
        bundle: object, backend: object = None, release_encoder: bool = False, sparse: bool | None = None
    ) -> FakeEngine:
        if backend == "executorch":
            raise HandLensError("The bundle has no executorch program; choose onnx.")
        fake.backend = backend
        fake.release_encoder = release_encoder
        return fake

    monkeypatch.setattr(handlens_runtime.engine, "Engine", make)
    return fake


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()
