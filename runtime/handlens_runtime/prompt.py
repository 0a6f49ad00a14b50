"""Messages and their prepared pictures to the rows of a prompt: ids, and which rows pictures fill.

messages ─chat template─▶ text with a placeholder a picture ─expand─▶ text with image tokens ─tokenize─▶ ids
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from handlens_runtime.chat import Message, render
from handlens_runtime.errors import PromptError
from handlens_runtime.images.expand import expand
from handlens_runtime.manifest import ImageRule, Manifest
from handlens_runtime.tokenizer import Tokenizer

Key = int | tuple[str, int]
"""What a cache row stands for: a token's id, or (a picture's digest, which of its embeddings)."""


@dataclass(frozen=True)
class Picture:
    """What a prompt needs to know of one prepared picture."""

    digest: str
    columns: int
    rows: int
    tiles: int
    """Tiles to encode, the thumbnail counted."""


@dataclass(frozen=True)
class Prompt:
    """The rows of a prompt."""

    ids: tuple[int, ...]
    """Token ids, the image token's id where a picture's embedding stands."""
    keys: tuple[Key, ...]
    """What each row is; two prompts that share their first keys share the cache rows too."""
    image_tokens: int
    """Rows that pictures fill."""


def check_messages(manifest: Manifest, messages: Sequence[Message]) -> None:
    """Refuse, before any picture is opened, what the bundle cannot answer. Raises PromptError."""
    if not messages:
        raise PromptError("There are no messages; give at least one message of the user.")
    if manifest.image is None and any(message.images for message in messages):
        raise PromptError(f"{manifest.name} reads text only, but a message has a picture; ask without it.")
    for message in messages:
        _check_encodes(message.text)
    if not manifest.chat.multi_turn and sum(message.role != "system" for message in messages) > 1:
        raise PromptError(f"{manifest.name} answers one question at a time; start a new conversation for the next.")


def build(
    manifest: Manifest,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    pictures: Sequence[Picture],
    *,
    answer: bool = True,
    now: Callable[[], datetime] = datetime.now,
) -> Prompt:
    """The prompt of a conversation; `pictures` are those of all messages, in order.

    `answer` adds the beginning of the assistant's turn; `now` is the clock of templates that write the date. Raises
    PromptError where the template refuses the messages, or loses a picture.
    """
    rule = manifest.image
    if rule is not None:
        messages = [replace(message, text=_neutralise(message.text, rule)) for message in messages]
    text = render(manifest.chat, messages, parts=rule is not None, answer=answer, now=now)
    if rule is not None:
        text = _expand(text, rule, pictures)
    ids = tokenizer.encode(text, manifest.chat.add_special_tokens)
    if not ids:
        raise PromptError("The prompt is empty; write a question.")
    return Prompt(tuple(ids), tuple(ids), 0) if rule is None else _fill(ids, rule, tokenizer, pictures)


def _check_encodes(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"A message's character {error.start + 1} ({text[error.start]!a}) is no text, as bytes that are not UTF-8 "
            "become; write the message in UTF-8."
        ) from error


def check_fits(manifest: Manifest, tokens: int, image_tokens: int = 0, answer_tokens: int = 0) -> None:
    """Refuse a prompt that the cache or a single decoder pass cannot hold. Raises PromptError.

    `answer_tokens`: rows of an answer that is given beforehand (`score`).
    """
    sizes = manifest.sizes
    if tokens + answer_tokens > sizes.context and tokens <= sizes.context:
        raise PromptError(
            f"The prompt has {tokens} tokens and the answer to score {answer_tokens} more, but the bundle's context "
            f"holds {sizes.context}; score a shorter text or export with a larger --context."
        )
    most = sizes.context if manifest.causal else min(sizes.context, sizes.max_chunk)
    if tokens <= most:
        return
    limit = "context" if most == sizes.context else "single decoder pass (its prompt cannot be cut in chunks)"
    raise PromptError(
        f"The prompt has {tokens} tokens, {image_tokens} of them for pictures, but the bundle's {limit} holds {most}; "
        "ask with fewer or smaller pictures or shorter messages, or export with a larger --context."
    )


def _neutralise(text: str, rule: ImageRule) -> str:
    """Text in which no image token or placeholder stands: a space after its first character takes its meaning away.

    Refusing would end a chat in which the model itself once wrote "<image>".
    """
    for token in {rule.image_token, rule.placeholder.strip()}:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def _expand(text: str, rule: ImageRule, pictures: Sequence[Picture]) -> str:
    around = text.split(rule.placeholder)
    if len(around) - 1 != len(pictures):
        raise PromptError(
            f"The chat template wrote {rule.placeholder!r} {len(around) - 1} times for {len(pictures)} pictures; "
            "attach pictures to user messages only."
        )
    pieces = [around[0]]
    for picture, rest in zip(pictures, around[1:], strict=True):
        pieces += [expand(rule, picture.columns, picture.rows), rest]
    return "".join(pieces)


def _fill(ids: list[int], rule: ImageRule, tokenizer: Tokenizer, pictures: Sequence[Picture]) -> Prompt:
    image_id = tokenizer.id_of(rule.image_token)
    slots = [(picture.digest, i) for picture in pictures for i in range(picture.tiles * rule.tokens_per_tile)]
    found = 0 if image_id is None else ids.count(image_id)
    if found != len(slots):
        raise PromptError(
            f"The prompt has {found} image tokens {rule.image_token!r} for {len(slots)} embeddings of its pictures; "
            "the bundle's image rule and tokenizer do not fit together, export the bundle again."
        )
    remaining = iter(slots)
    keys = tuple(next(remaining) if token == image_id else token for token in ids)
    return Prompt(tuple(ids), keys, len(slots))
