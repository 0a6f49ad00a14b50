"""The reader's byte-level BPE tokenizer and its chat template.

The words of the questions' fixed language are one token each. There are no merges: everything else, which is what
stands on a page, stays in single characters, so that reading is the same work for every string, seen before or not.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from handlens_export.reader import chat, questions

END, USER, ASSISTANT, SYSTEM, IMAGE = SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<image>")
"""Ids 0 to 4."""
VOCABULARY = 512
"""Rows of the embedding; those behind the last token are never used."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""`<|user|><image>What is the total?<|end|><|assistant|>12.50<|end|>`"""


def build() -> Tokenizer:
    """The tokenizer: the same one every time."""
    before = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    phrases = (part for phrase in (*questions.PHRASES, *chat.PHRASES) for part in phrase.split("{}"))
    words = (word for part in phrases for word, _ in before.pre_tokenize_str(part))
    tokens = dict.fromkeys((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words))
    if len(tokens) > VOCABULARY:
        raise ValueError(f"The fixed language has {len(tokens) - VOCABULARY} words too many.")
    # ignore_merges: a word that is a token is that token, as in Llama 3's tokenizer.
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer
