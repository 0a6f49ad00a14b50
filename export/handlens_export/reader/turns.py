"""Questions and answers about one picture as the tokens of one row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from handlens_export.reader.pointers import NOWHERE, Places, Pointers
from handlens_export.reader.questions import KINDS
from handlens_export.reader.scene import Kind, Turn
from handlens_export.reader.tokenizer import ASSISTANT, END, USER

TOLD: tuple[Kind, ...] = (*KINDS, "chat", "page")
"""Kinds by number."""


@dataclass(frozen=True)
class Turns:
    """The tokens of a picture and of some questions about it."""

    tokens: NDArray[np.int16]
    """(5, t): ids; positions for rotation; segments, 0 for what all that follows sees, else the question that alone
    sees it; the number of the answer that each token belongs to, counted from 1, else 0; and which of the picture's
    image tokens shows what it says, counted from 0, else NOWHERE.

    Those of each question that stands alone have positions that begin after the picture.
    """
    kinds: NDArray[np.int16]
    """(answers,) numbers in TOLD."""


def encode(
    tokenizer: Tokenizer, picture: str, turns: Sequence[Turn], alone: bool, pointers: Pointers | None = None
) -> Turns:
    """As the chat template has them: `picture` is the text that stands for it, with all its image tokens.

    `alone`: no question sees another, since an earlier answer often holds a later one; else they are turns of one
    conversation.
    """
    vocabulary = tokenizer.get_vocab()
    user, assistant, end = (vocabulary[token] for token in (USER, ASSISTANT, END))
    ids = [user, *tokenizer.encode(picture).ids]
    first = len(ids)
    positions, segments, answers, places = list(range(first)), [0] * first, [0] * first, [NOWHERE] * first
    for number, turn in enumerate(turns, 1):
        again = [user] if number > 1 and not alone else []
        question, answer = tokenizer.encode(turn.question), tokenizer.encode(turn.answer)
        asked = [*again, *question.ids, end, assistant]
        said = [*answer.ids, end]
        begin = first if alone else len(positions)
        ids += asked + said
        positions += range(begin, begin + len(asked) + len(said))
        segments += [number if alone else 0] * (len(asked) + len(said))
        answers += [0] * len(asked) + [number] * len(said)
        places += [NOWHERE] * len(again) + _shown(question, pointers.question(turn) if pointers else ())
        places += [NOWHERE, NOWHERE, *_shown(answer, pointers.answer(turn) if pointers else ()), NOWHERE]
    kinds = np.array([TOLD.index(turn.kind) for turn in turns], np.int16)
    return Turns(np.array((ids, positions, segments, answers, places), np.int16), kinds)


def _shown(text: Encoding, places: Places) -> list[int]:
    """Of each token, the place of its last character: its first may be a space."""
    return [places[end - 1] if places else NOWHERE for _, end in text.offsets]
