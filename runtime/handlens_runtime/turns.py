"""Which rows of a conversation were asked, and which the model answered itself: where its turns begin and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from handlens_runtime.chat import Message
from handlens_runtime.errors import PromptError
from handlens_runtime.manifest import Manifest
from handlens_runtime.prompt import Picture, Prompt, build
from handlens_runtime.tokenizer import Tokenizer


def asked(
    manifest: Manifest,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    pictures: Sequence[Picture],
    prompt: Prompt,
    now: Callable[[], datetime],
) -> list[tuple[int, int]]:
    """Spans of `prompt`'s rows that are no answer of the model's: from the end of one to the beginning of the next.

    An answer ends before the token that ends it, which the model gives and is not fed. So the spans are the same for a
    conversation that grew turn by turn and for one that is given whole. A turn whose beginning the template writes in
    another way than when it was asked is part of what is asked.
    """
    spans, begin, keys = [], 0, prompt.keys
    for index, message in enumerate(messages):
        before = () if message.role != "assistant" else _keys(manifest, tokenizer, messages[:index], pictures, now)
        if len(before) <= begin or keys[: len(before)] != before:
            continue
        spans.append((begin, len(before)))
        ends = (place for place in range(len(before), len(keys)) if keys[place] in manifest.chat.stop_ids)
        begin = next(ends, len(keys))
    return spans if begin == len(keys) else [*spans, (begin, len(keys))]


def _keys(
    manifest: Manifest,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    pictures: Sequence[Picture],
    now: Callable[[], datetime],
) -> tuple[object, ...]:
    """Of a shorter conversation, up to where its answer begins; none where the template does not take it."""
    shown = sum(len(message.images) for message in messages)
    try:
        return build(manifest, tokenizer, messages, pictures[:shown], answer=True, now=now).keys
    except PromptError:
        return ()
