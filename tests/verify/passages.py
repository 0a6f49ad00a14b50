"""The real texts that checks measure on."""

from __future__ import annotations

from pathlib import Path

from handlens_export import materials
from handlens_runtime.tokenizer import Tokenizer

BEGINNING = "Call me Ishmael"
"""Of the novel, after the licence, the etymology and the extracts."""


def novel() -> str:
    """Moby-Dick from its first chapter on."""
    text = materials.fetch("moby-dick").read_text(encoding="utf-8")
    return text[text.index(BEGINNING) :]


def windows(tokenizer: Path, tokens: int, length: int) -> list[list[int]]:
    """The first `tokens` ids of the novel in windows of `length`, none overlapping; the last may be shorter."""
    # A token is never shorter than a character here, and hardly longer than eight.
    ids = Tokenizer(tokenizer).encode(novel()[: 8 * tokens])[:tokens]
    assert len(ids) == tokens
    return [ids[begin : begin + length] for begin in range(0, tokens, length)]
