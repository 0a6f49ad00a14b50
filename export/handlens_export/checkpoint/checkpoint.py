"""What a checkpoint is to the rest of the exporter, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class TensorSource(Protocol):
    """Named tensors, memory-mapped: nothing is read before `read`."""

    def names(self) -> Iterator[str]:
        """All tensor names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header alone."""

    def read(self, name: str) -> Tensor:
        """One tensor in float32 or, where stored so, bfloat16 / float16; KeyError where there is none."""

    def digest(self, name: str) -> str:
        """sha256 of what `read` would be made of, hexadecimal."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's configuration and text pieces, read; its tensors, not yet."""

    path: Path
    config: dict[str, Any]
    """config.json, or its equivalent made from a GGUF header."""
    tensors: TensorSource
    tokenizer_json: str
    """tokenizer.json, as the tokenizers library reads it."""
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    generation_config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    """preprocessor_config.json, with processor_config.json's own keys laid over it."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """`tokenizer_json` parsed, once: a large vocabulary takes a while."""
        return Tokenizer.from_str(self.tokenizer_json)
