"""tokenizer.json rebuilt from GGUF metadata, against the tokenizer it came from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from handlens_export.checkpoint.gguf_tokenizer import end_ids, tokenizer_config, tokenizer_json
from handlens_export.errors import CheckpointError

LINES = (
    "The quick brown fox jumps over the lazy dog, 12345 times; it's DONE.",
    "Naïve café — 日本語テキスト 🎉 and\ttabs\n\n  and   spaces  ",
    "I'll say: we've 3.14159 apples & 2 x-rays (don't you?)\r\nНовая строка.",
) * 4
HARD = (*LINES[:3], "", " ", "  two", "\n", "x1234567y", "e\u0301 combines", "'S 'll CAN'T", "<0x0A> <s> ▁")
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    parts = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


# Llama 3's tokenizer.json, spelled out
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "qwen2": split(QWEN2),
    "llama-bpe": split(LLAMA3),
}


def byte_level(pre: str) -> tuple[Tokenizer, dict[str, Any]]:
    """A trained byte-level tokenizer cut like `pre`, and the metadata that llama.cpp's converter would write of it."""
    original = Tokenizer(models.BPE())
    original.pre_tokenizer = ORIGINALS[pre]
    original.normalizer = normalizers.NFC() if pre == "qwen2" else None
    specials = [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    original.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    original.add_tokens(["<think>"])
    vocab = original.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    inner = json.loads(original.to_str())["model"]
    return original, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *([1] * (len(tokens) - 4)), 4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in inner["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_gives_the_original_ids(pre: str, tmp_path: Path) -> None:
    original, metadata = byte_level(pre)
    rebuilt = Tokenizer.from_str(tokenizer_json(tmp_path, metadata))
    for text in (*HARD, "<|im_start|>user\nhi <think>1</think><|im_end|>\n"):
        assert rebuilt.encode(text).ids == original.encode(text).ids, text
        normalized = original.normalizer.normalize_str(text) if original.normalizer else text
        assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == normalized
    assert rebuilt.decode(rebuilt.encode("a<|im_end|><think>").ids) == "a<think>"


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path: Path) -> None:
    metadata = byte_level("gpt-2")[1] | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    ids = Tokenizer.from_str(tokenizer_json(tmp_path, metadata)).encode("a").ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
    config = tokenizer_config(metadata)
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<|im_start|>", "<|im_end|>", True)


def test_known_end_tokens_are_found_beside_the_named_one() -> None:
    assert end_ids(byte_level("gpt-2")[1]) == [2, 0]
    assert end_ids({}) == []


@pytest.mark.parametrize("pre", [None, "default"])
def test_an_unknown_cut_is_refused_not_guessed(pre: str | None, tmp_path: Path) -> None:
    metadata = byte_level("gpt-2")[1] | {"tokenizer.ggml.pre": pre, "general.architecture": "llama"}
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre"):
        tokenizer_json(tmp_path, metadata)


def test_merges_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    metadata = byte_level("gpt-2")[1] | {"tokenizer.ggml.merges": ["zz qq"]}
    with pytest.raises(CheckpointError, match="does not fit together"):
        tokenizer_json(tmp_path, metadata)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_the_original_ids(prefix: bool, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        character_coverage=0.98,
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(original.get_piece_size())
    kinds = [
        2 if original.is_unknown(i) else 3 if original.is_control(i) else 6 if original.is_byte(i) else 1 for i in ids
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [original.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    rebuilt = Tokenizer.from_str(tokenizer_json(tmp_path, metadata))
    for text in HARD[:-1]:
        got = rebuilt.encode(text).ids
        assert got == [1, *original.encode(text)], text
        assert rebuilt.decode(got) == original.decode(original.encode(text)), text
