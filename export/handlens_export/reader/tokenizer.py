"""The reader's byte-level BPE tokenizer and its chat template.

Merges are learned from the fixed language of questions and answers alone. What stands on a page stays in single
characters, so that reading is the same work for every string, seen before or not.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from handlens_export.reader import chat, questions

END, USER, ASSISTANT, SYSTEM, IMAGE = SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<image>")
"""Ids 0 to 4."""
VOCABULARY = 512
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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    phrases = (*questions.PHRASES, *chat.PHRASES)
    tokenizer.train_from_iterator((part for phrase in phrases for part in phrase.split("{}")), trainer)
    return tokenizer
