"""tokenizer.json from a GGUF file's metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from handlens_export.errors import CheckpointError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""llama.cpp's token types that matter here."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "smaug-bpe": LLAMA3,
    "falcon3": LLAMA3,
    "qwen2": LLAMA3.replace("{1,3}", ""),
    "deepseek-r1-qwen": LLAMA3.replace("{1,3}", ""),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""`tokenizer.ggml.pre` -> the expression that cuts text before merging, as in the tokenizer.json it came from."""
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r")
"""GPT-2's cut, with every digit a piece of its own."""
WHOLE_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
"""A piece that is a token is taken whole, whatever the merges say; these also start with BOS unless told otherwise."""
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")
"""Control tokens that end an answer wherever they exist, as llama.cpp takes them."""


def tokenizer_json(path: Path, metadata: dict[str, Any]) -> str:
    """The text of a tokenizer.json; CheckpointError where the file's tokenizer cannot be rebuilt exactly."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise CheckpointError(
            f"{path} has a tokenizer of kind {kind}; gpt2 and llama can be rebuilt, for others give the folder that "
            "transformers saves."
        )
    try:
        tokenizer = _byte_level(path, metadata) if kind == "gpt2" else _sentencepiece(path, metadata)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"{path} has a tokenizer that does not fit together ({error}); convert it again."
        ) from None
    _add_tokens(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type", []))
    _add_ends(tokenizer, metadata)
    text: str = tokenizer.to_str()
    return text


def tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json's special tokens and flags."""
    config: dict[str, Any] = {
        name: _token(metadata, key)
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if _token(metadata, key) is not None
    }
    add_bos, add_eos = _adds(metadata)
    return config | {"add_bos_token": add_bos, "add_eos_token": add_eos}


def end_ids(metadata: dict[str, Any]) -> list[int]:
    """Ids that end an answer: those the file names, and the control tokens known to."""
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    types = metadata.get("tokenizer.ggml.token_type", [])
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    known = [
        i for i, (token, type_) in enumerate(zip(tokens, types, strict=False)) if type_ == CONTROL and token in ENDS
    ]
    return list(dict.fromkeys(i for i in (*named, *known) if i is not None))


def _byte_level(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre in (None, "default") and metadata.get("general.architecture") == "qwen2":
        pre = "qwen2"
    if pre not in SPLITS and pre not in DIGITS_ALONE and pre != "gpt-2":
        known = ", ".join(("gpt-2", *DIGITS_ALONE, *SPLITS))
        raise CheckpointError(
            f"{path} has tokenizer.ggml.pre = {pre}, but text can be cut only as {known} do; "
            "convert the checkpoint again with a newer llama.cpp, or give the folder that transformers saves."
        )
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [_pair(merge) for merge in metadata.get("tokenizer.ggml.merges", [])]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_FIRST))
    if pre in SPLITS:
        split = pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre in DIGITS_ALONE:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.scores", [])
    types = metadata.get("tokenizer.ggml.token_type", [])
    if len(scores) != len(tokens) or len(types) != len(tokens):
        raise CheckpointError(f"{path} has {len(tokens)} tokens but {len(scores)} scores; convert it again.")
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = next((token for token, type_ in zip(tokens, types, strict=True) if type_ == UNKNOWN), None)
    merges = _merges_by_score(vocab, scores, types)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    space = [normalizers.Replace(" ", "▁")]
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *space])
        tokenizer.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = normalizers.Sequence(space)
        tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer


def _merges_by_score(vocab: dict[str, int], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies: every cut of a token into two, best scores first."""
    cuts: list[tuple[float, int, int, str, str]] = []
    for token, i in vocab.items():
        if types[i] in (UNKNOWN, CONTROL, USER_DEFINED):
            continue
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        inside = [(left, right) for left, right in pairs if left in vocab and right in vocab]
        cuts += [(-scores[i], vocab[left], vocab[right], left, right) for left, right in inside]
    return [(left, right) for *_, left, right in sorted(cuts)]


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Control and user-defined tokens are matched in text as a whole; control ones are not shown."""
    added = [
        AddedToken(token, special=type_ == CONTROL, normalized=False)
        for token, type_ in zip(tokens, types, strict=False)
        if type_ in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.add_special_tokens([token for token in added if token.special])


def _adds(metadata: dict[str, Any]) -> tuple[bool, bool]:
    """Whether BOS and EOS are added; where the file says nothing, as llama.cpp does."""
    by_default = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in WHOLE_FIRST
    bos = metadata.get("tokenizer.ggml.add_bos_token", by_default)
    return bool(bos), bool(metadata.get("tokenizer.ggml.add_eos_token", False))


def _add_ends(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    add_bos, add_eos = _adds(metadata)
    bos, eos = _token(metadata, "bos") if add_bos else None, _token(metadata, "eos") if add_eos else None
    present = [token for token in (bos, eos) if token is not None]
    if present:
        template = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
        ids = [(token, tokenizer.token_to_id(token)) for token in present]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=None, special_tokens=ids)


def _token(metadata: dict[str, Any], key: str) -> str | None:
    index, tokens = metadata.get(f"tokenizer.ggml.{key}_token_id"), metadata.get("tokenizer.ggml.tokens", [])
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
