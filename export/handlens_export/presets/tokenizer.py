"""A byte-level BPE tokenizer of any size, made by rule: nothing to train, nothing to download, the same everywhere.

Merges join frequent English letters into pairs, then pairs into fours, until the vocabulary is full, so that every id
of a large vocabulary decodes to some text and tokenizer.json has the size of a real one.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
"""Ids 0 to 3."""
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
SPACE = "Ġ"  # how a byte-level vocabulary writes a space
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML; a message's content is a string or a list of image and text parts, a picture being `<image>`."""


def build(vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens: the special ones, 256 bytes, then merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    merges: list[tuple[str, str]] = []
    for left, right in _merges():
        if len(vocab) >= vocab_size:
            break
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def _merges() -> Iterator[tuple[str, str]]:
    pairs = [(first, second) for first in (*LETTERS, SPACE) for second in LETTERS]
    yield from pairs
    inner = [first + second for first, second in pairs if first != SPACE]
    for left in (first + second for first, second in pairs):
        for right in inner:
            yield left, right
