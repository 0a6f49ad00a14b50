import random

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from handlens_runtime.errors import BundleError
from handlens_runtime.stream import Detokenizer, StopStrings, TextStream
from handlens_runtime.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "日本語のテキストと中文文本,한국어도",
    "👩‍👩‍👧‍👦 family, flags 🇫🇷🇯🇵, skin 👍🏽, keycap 1️⃣",
    "cafe\u0301 n\u0303 a\u0308\u0323 zalgo t\u0336\u0337e\u0338",
    "  two leading spaces,\ttabs\nand\n\nnewlines  \n",
    "a genuine \ufffd inside and at the end \ufffd",
    "mixed: naïve Ωμέγα русский ไทย العربية עברית हिन्दी",
]


def byte_level() -> Library:
    """Byte-level BPE as SmolLM2's: few merges, so that characters are split over tokens."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


def sentence_piece() -> Library:
    """Metaspace with byte fallback, as Llama 2's and Gemma's: the first token loses its leading space."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ["▁", "▁The", "The", "▁quick", "qu", "ick", *"abcdefghijklmnopqrstuvwxyz.,▁", "中", "▁▁"]:
        vocab.setdefault(piece, len(vocab))
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken("<end>", normalized=False)])
    return library


def load(library, path):
    library.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    return load(byte_level(), tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def piece_tokenizer(tmp_path_factory):
    return load(sentence_piece(), tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def stream(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.add(token) for token in ids], detokenizer.flush()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_tokenizer", "piece_tokenizer"])
def test_pieces_are_the_text(request, kind, text):
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(text)
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)
    assert tokenizer.decode(ids) == text or kind == "piece_tokenizer"
    if "\ufffd" not in text:
        assert rest == "" and not any("\ufffd" in piece for piece in pieces)


def test_random_ids_stream_to_their_decoding(byte_tokenizer):
    drawn = random.Random(0)
    for _ in range(300):
        ids = [drawn.randrange(byte_tokenizer.vocab_size) for _ in range(drawn.randrange(1, 40))]
        pieces, rest = stream(byte_tokenizer, ids)
        assert "".join(pieces) + rest == byte_tokenizer.decode(ids)


def test_special_tokens_between_words_cost_no_space(piece_tokenizer):
    end = piece_tokenizer.id_of("<end>")
    ids = [*piece_tokenizer.encode("a b"), end, *piece_tokenizer.encode("c"), end]
    pieces, rest = stream(piece_tokenizer, ids)
    assert "".join(pieces) + rest == piece_tokenizer.decode(ids) == "a b c"


def test_a_character_appears_only_when_whole(byte_tokenizer):
    ids = [byte_tokenizer.id_of(c) for c in pre_tokenized("🦜")]
    pieces, rest = stream(byte_tokenizer, ids)
    assert pieces == ["", "", "", "🦜"] and rest == ""
    assert stream(byte_tokenizer, ids[:3]) == (["", "", ""], "\ufffd")


def pre_tokenized(text):
    return pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)[0][0]


def cuts(text, drawn):
    while text:
        length = drawn.randrange(1, 5)
        yield text[:length]
        text = text[length:]


@pytest.mark.parametrize(
    ("text", "stops", "shown", "found"),
    [
        ("hello STOP world", ["STOP"], "hello ", "STOP"),
        ("hello STO", ["STOP"], "hello STO", None),
        ("aaab", ["aab"], "a", "aab"),
        ("ababac!", ["abac"], "ab", "abac"),
        ("xabcy", ["abc", "b"], "xa", "b"),
        ("xaby", ["b", "ab"], "x", "ab"),
        ("one\n\ntwo", ["\n\n"], "one", "\n\n"),
        ("no stops at all", [], "no stops at all", None),
        ("end", ["end"], "", "end"),
    ],
)
def test_stop_string_is_found_however_the_text_is_cut(text, stops, shown, found):
    drawn = random.Random(1)
    for _ in range(30):
        watcher = StopStrings(stops)
        pieces = [watcher.add(piece) for piece in cuts(text, drawn)]
        assert "".join(pieces) + watcher.flush() == shown
        assert watcher.found == found


def test_only_a_possible_beginning_is_held_back():
    watcher = StopStrings(["User:"])
    assert [watcher.add(piece) for piece in ["I am ", "Us", "ing", " U", "s"]] == ["I am ", "", "Using", " ", ""]
    assert watcher.flush() == "Us"


def test_stop_string_across_token_borders(byte_tokenizer):
    stops = TextStream(byte_tokenizer, ["lazy"])
    shown = "".join(stops.add(token) for token in byte_tokenizer.encode("the lazy dog")) + stops.flush()
    assert shown == "the " and stops.stopped


def test_stop_string_may_be_met_in_the_last_flush(byte_tokenizer):
    stops = TextStream(byte_tokenizer, ["\ufffd"])
    shown = "".join(stops.add(token) for token in byte_tokenizer.encode("ok\ufffd"))
    assert shown + stops.flush() == "ok" and stops.stopped


def test_training_time_truncation_and_padding_do_not_touch_a_prompt(tmp_path):
    library = byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=64)
    tokenizer = load(library, tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer.json is not a tokenizer.*export the bundle again"):
        Tokenizer(tmp_path / "tokenizer.json")
