"""What activations are measured on: a set of the user's own, or a few prompts of different kinds and the shipped
photographs.

The prompts were written for this purpose, so they need no licence but ours. They are few on purpose: a static scale is
a largest value with a margin, and largest values are reached within a few hundred tokens. The methods that correlate
activations want more, SEQUENCES of LENGTH tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from handlens_export.errors import CalibrationError
from handlens_export.network.network import Network
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import PreparedPrompt, embed, prepare_prompt
from handlens_export.recipe import LENGTH, SEQUENCES
from handlens_runtime.chat import Message
from handlens_runtime.evaluation import read_set
from handlens_runtime.golden.asking import DAY
from handlens_runtime.manifest import Manifest
from handlens_runtime.tokenizer import Tokenizer

PICTURES = 2
CHARACTERS = 16
"""Of a text for each token wanted, at most: more are not even tokenized."""
ROWS = 256
"""Of each prompt at most: with all tiles of two photographs, the full-size model's calibration took eight minutes."""
OWN = 8
"""Prompts of the user's own set, beside those built in, that the cache's scales are measured on."""
TEXTS = (
    "What is in this picture? Name every object you can see and say where it is.",
    "The harbour was quiet before dawn. Two men loaded crates of mackerel onto a cart while gulls walked the wall, and "
    "the first ferry, late again, sounded its horn beyond the breakwater. 'You said seven o'clock,' the older one "
    "muttered, 'and it is already twenty past eight.' Nobody answered him.",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n"
    "    if len(ordered) % 2:\n        return ordered[middle]\n"
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n\nprint(median([3, 1.5, 42, -7]))",
    "Invoice 20418\n2 x Espresso   4.60\n1 x Croissant   2.35\nVAT 19 %   1.11\nTotal   EUR 6.95\nThank you, table 12!",
    "Solve step by step: a train leaves at 09:40 and travels 312 km at 96 km/h. When does it arrive? 312 / 96 = 3.25, "
    "which is 3 hours and 15 minutes, so it arrives at 12:55.",
    "Größe, naïve, œuvre, año; 東京は日本の首都です。 Москва слезам не верит. 🙂🚲 https://example.org/?q=a+b&n=10",
)


def calibration_rows(network: Network, manifest: Manifest, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Embedded rows (1, t, width) of each prompt of the built-in set, cut to the context and to ROWS.

    Asked on DAY, as golden cases are: some chat templates write today's date.
    """
    questions = [Message("user", text) for text in TEXTS]
    if network.vision is not None:
        pictures = islice(cycle(photographs()), PICTURES)
        questions += [Message("user", TEXTS[0], images=(picture,)) for picture in pictures]
    for question in questions:
        prepared = prepare_prompt(manifest, tokenizer, [question], now=lambda: DAY)
        yield embed(network, prepared, min(ROWS, manifest.sizes.context))


def scale_rows(
    path: Path | None, network: Network, manifest: Manifest, tokenizer: Tokenizer, bos: int | None
) -> Iterator[Tensor]:
    """What the cache's scales are measured on: the built-in set, and some of the user's own."""
    yield from calibration_rows(network, manifest, tokenizer)
    for rows in () if path is None else own_rows(path, network, manifest, tokenizer, bos, OWN):
        yield rows[:, :ROWS]


def own_rows(
    path: Path,
    network: Network,
    manifest: Manifest,
    tokenizer: Tokenizer,
    bos: int | None,
    most: int = SEQUENCES,
) -> Iterator[Tensor]:
    """Embedded rows (1, t, width) of the user's own set: a text, cut every LENGTH tokens, or an evaluation set (JSONL),
    each question with its picture and its answer, through the chat template. `most` of them.

    Raises CalibrationError, EvaluationError, ImageError, PromptError.
    """
    length = min(LENGTH, manifest.sizes.context)
    if path.suffix == ".jsonl":
        encoded: dict[str, Tensor] = {}
        shown = None
        for question in read_set(path).spread(most).questions:
            if question.image != shown:  # several questions about one picture stand together, and encode it once
                encoded, shown = {}, question.image
            images = () if question.image is None else (question.image,)
            said = [Message("user", question.question, images=images)]
            if manifest.chat.multi_turn:  # else its template has no place for an answer
                said.append(Message("assistant", question.answer))
            answered = manifest.chat.multi_turn
            prepared = prepare_prompt(manifest, tokenizer, said, answer=not answered, now=lambda: DAY)
            yield embed(network, _shortened(prepared, length), encoded=encoded)
        return
    first = [] if bos is None else [bos]
    step = length - len(first)
    ids = tokenizer.encode(content_of(path).decode()[: CHARACTERS * most * length])[: most * step]
    for begin in range(0, len(ids), step):
        yield network.decoder.embedding(torch.tensor([[*first, *ids[begin : begin + step]]]))


def _shortened(prepared: PreparedPrompt, length: int) -> PreparedPrompt:
    """A long picture's first rows, and all of the text behind it: without, there would be no question and no answer."""
    keys = prepared.prompt.keys
    last = max((index for index, key in enumerate(keys) if isinstance(key, tuple)), default=-1)
    kept = range(last + 1 if last >= 0 else 0, len(keys))
    behind = list(kept)[: length if last < 0 else length // 2]
    chosen = range(len(keys)) if len(keys) <= length else (*range(length - len(behind)), *behind)
    ids = tuple(prepared.prompt.ids[index] for index in chosen)
    return replace(prepared, prompt=replace(prepared.prompt, ids=ids, keys=tuple(keys[index] for index in chosen)))


def digest(path: Path | None) -> str:
    """sha256, hexadecimal, of the user's own set, or of the built-in one, pictures included. Raises as `own_rows`."""
    if path is None:
        state = hashlib.sha256("\n".join(TEXTS).encode())
        pictures = photographs()[:PICTURES]
    else:
        state = hashlib.sha256(content_of(path))
        found = read_set(path).questions if path.suffix == ".jsonl" else ()
        pictures = list(dict.fromkeys(question.image for question in found if question.image is not None))
    for picture in pictures:
        state.update(hashlib.sha256(picture.read_bytes()).digest())
    return state.hexdigest()


def content_of(path: Path) -> bytes:
    """A calibration set's bytes. Raises CalibrationError where it cannot be read or is neither text nor JSONL."""
    wanted = f"give a text of some {SEQUENCES * LENGTH:,} tokens, or an evaluation set (JSONL), to calibrate on"
    try:
        content = path.read_bytes()
        content.decode()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read ({error.strerror}); {wanted}.") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is no text in UTF-8; {wanted}.") from error
    if not content.strip():
        raise CalibrationError(f"{path} is empty; {wanted}.")
    return content
