"""What a network is tried on: windows of a text, and questions with the tokens of their right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from handlens_export.network.network import Network
from handlens_export.prompt_rows import PreparedPrompt, embed, prepare_prompt
from handlens_runtime.chat import Message
from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation import Question, QuestionSet
from handlens_runtime.golden.asking import DAY
from handlens_runtime.images.preprocess import Tiles
from handlens_runtime.manifest import Manifest
from handlens_runtime.prompt import Key, Prompt
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
    """The first `tokens` tokens of a text in windows. Raises EvaluationError where there are too few for one."""
    first = [] if bos is None else [bos]
    step = min(WINDOW, context) - len(first)
    ids = tokenizer.encode(text[: 16 * tokens])[:tokens]
    if len(ids) < 2:
        raise EvaluationError("The text to predict has no two tokens; give a longer one.")
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
        prompt = _asked(question, manifest, tokenizer, answered=False)
        answered = _asked(question, manifest, tokenizer, answered=True) if manifest.chat.multi_turn else None
        begin, ids = _answer(prompt.prompt.keys, answered.prompt.keys if answered else None, question, tokenizer, stops)
        if begin + len(ids) <= manifest.sizes.context:
            before, behind = prompt.prompt, ids[:-1]
            whole = replace(before, ids=(*before.ids[:begin], *behind), keys=(*before.keys[:begin], *behind))
            again = partial(_tiles, question, manifest, tokenizer)
            yield Item("answer", _rows(whole, again), begin - 1, torch.tensor(ids), stops)


def _tiles(question: Question, manifest: Manifest, tokenizer: Tokenizer) -> dict[str, Tiles]:
    return _asked(question, manifest, tokenizer, answered=False).tiles


def _asked(question: Question, manifest: Manifest, tokenizer: Tokenizer, answered: bool) -> PreparedPrompt:
    images = () if question.image is None else (question.image,)
    said = [Message("user", question.question, images=images)]
    if answered:
        said.append(Message("assistant", question.answer))
    return prepare_prompt(manifest, tokenizer, said, answer=not answered, now=lambda: DAY)


def _answer(
    prompt: Sequence[Key],
    answered: Sequence[Key] | None,
    question: Question,
    tokenizer: Tokenizer,
    stops: frozenset[int],
) -> tuple[int, list[int]]:
    """Where the answer begins, and its tokens: as the template writes an answer, with its space before it, say.

    `answered` is the whole conversation, None where the template writes none; then the answer alone is taken.
    """
    if answered is None:
        return len(prompt), [*tokenizer.encode(question.answer), *sorted(stops)[:1]]
    same = (index for index, pair in enumerate(zip(prompt, answered, strict=False)) if pair[0] != pair[1])
    begin = next(same, min(len(prompt), len(answered)))
    ids = [key for key in answered[begin:] if isinstance(key, int)]
    end = next((index for index, one in enumerate(ids) if one in stops), len(ids) - 1)
    return begin, ids[: end + 1]


def _rows(prompt: Prompt, tiles: Callable[[], dict[str, Tiles]]) -> Callable[[Network, Encoded], Tensor]:
    """`tiles` cuts the prompt's pictures, again at each call: those of all questions at once would fill memory."""

    def rows(network: Network, encoded: Encoded) -> Tensor:
        seen = {key[0] for key in prompt.keys if isinstance(key, tuple)}
        cut = {} if seen <= encoded.keys() else tiles()
        return embed(network, PreparedPrompt(prompt, cut), encoded=encoded)

    return rows


def _embedded(ids: Tensor) -> Callable[[Network, Encoded], Tensor]:
    def rows(network: Network, _encoded: Encoded) -> Tensor:
        out: Tensor = network.decoder.embedding(ids[None])
        return out

    return rows
