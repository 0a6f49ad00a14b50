"""What a network is tried on: windows of a text, and questions with the tokens of their right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from handlens_export.errors import CalibrationError
from handlens_export.network.network import Network
from handlens_export.prompt_rows import PreparedPrompt, embed, prepare_prompt
from handlens_runtime.chat import Message
from handlens_runtime.evaluation import QuestionSet
from handlens_runtime.golden.asking import DAY
from handlens_runtime.manifest import Manifest
from handlens_runtime.tokenizer import Tokenizer

WINDOW = 512
"""Tokens of a text that are read at once, each window from an empty cache."""


Encoded = dict[str, Tensor]
"""A network's encoded pictures, by digest."""


@dataclass(frozen=True)
class Item:
    """One prompt, and the tokens that should follow at some of its positions."""

    kind: Literal["text", "answer"]
    rows: Callable[[Network, Encoded], Tensor]
    """The network's embedded rows (1, t, width); several questions about one picture encode it once."""
    first: int
    """Position whose next token is the first one looked at; the others follow."""
    expected: Tensor
    """int64 (n,): the next tokens at first, first + 1, …"""
    stops: frozenset[int] = frozenset()
    """Tokens that may end an answer, in the place of the last one expected."""


def text_items(text: str, tokenizer: Tokenizer, tokens: int, context: int, bos: int | None) -> Iterator[Item]:
    """The first `tokens` tokens of a text in windows. Raises CalibrationError where there are too few for one."""
    first = [] if bos is None else [bos]
    step = min(WINDOW, context) - len(first)
    ids = tokenizer.encode(text[: 16 * tokens])[:tokens]
    if len(ids) < 2:
        raise CalibrationError("The text to predict has no two tokens; give a longer one.")
    for begin in range(0, len(ids), step):
        window = torch.tensor([*first, *ids[begin : begin + step]])
        if len(window) > 1:
            yield Item("text", _embedded(window), 0, window[1:])


def answer_items(questions: QuestionSet, manifest: Manifest, tokenizer: Tokenizer) -> Iterator[Item]:
    """Each question with its right answer behind it, and the token that ends it; those that fit into the context.

    A network that gives each of these tokens the highest score, given those before it, is one whose greedy answer is
    the right one, to the letter. Raises ImageError, PromptError.
    """
    stops = frozenset(manifest.chat.stop_ids)
    for question in questions.questions:
        images = () if question.image is None else (question.image,)
        asked = [Message("user", question.question, images=images)]
        prompt = prepare_prompt(manifest, tokenizer, asked, now=lambda: DAY)
        begin, ids = len(prompt.prompt.ids), [*tokenizer.encode(question.answer), manifest.chat.stop_ids[0]]
        if begin + len(ids) <= manifest.sizes.context:
            answered = _with(prompt, ids[:-1])
            yield Item("answer", _prepared(answered), begin - 1, torch.tensor(ids), stops)


def _prepared(prompt: PreparedPrompt) -> Callable[[Network, Encoded], Tensor]:
    return lambda network, encoded: embed(network, prompt, encoded=encoded)


def _embedded(ids: Tensor) -> Callable[[Network, Encoded], Tensor]:
    def rows(network: Network, _encoded: Encoded) -> Tensor:
        out: Tensor = network.decoder.embedding(ids[None])
        return out

    return rows


def _with(prompt: PreparedPrompt, ids: Sequence[int]) -> PreparedPrompt:
    """The prompt with tokens behind it."""
    plain = prompt.prompt
    return replace(prompt, prompt=replace(plain, ids=(*plain.ids, *ids), keys=(*plain.keys, *ids)))
