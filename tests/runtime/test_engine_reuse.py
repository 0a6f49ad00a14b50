"""Rows and embeddings kept from earlier turns: fewer steps, the same answers."""

import random

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.chat import Message
from handlens_runtime.options import Options

TILE = 16


def picture(seed, columns=1, rows=1):
    """A noise photograph that is cut into columns x rows tiles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * TILE, columns * TILE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def answer(engine, messages, **options):
    return list(engine.generate(messages, Options(**options)))


def text(tokens):
    return "".join(token.text for token in tokens)


QUESTION = [Message("user", "What is the capital of France? Answer in one word, please.")]
PICTURES = [Message("user", "Compare them.", (picture(1, 2, 2), picture(2), picture(3, 3, 1)))]


@pytest.mark.parametrize("vision", [True, False])
def test_twenty_turns_with_reuse_equal_cold_runs(make_engine, vision):
    chosen = {"max_tokens": 6, "temperature": 1.0, "seed": 4}

    def wide(manifest):
        manifest["sizes"].update(context=4096)

    warm = make_engine(vision=vision, change=wide)
    cold = make_engine(vision=vision, change=wide)
    messages, drawn = [], random.Random(2)
    for turn in range(20):
        images = tuple(picture(drawn.randrange(3), 2) for _ in range(drawn.choice([0, 0, 1, 2]))) if vision else ()
        messages.append(Message("user", f"question {turn}", images))
        cold.reset()
        tokens = answer(warm, messages, **chosen)
        assert tokens == answer(cold, messages, **chosen)
        assert cold.stats.reused_tokens == 0 and (turn == 0 or warm.stats.reused_tokens > 0)
        messages.append(Message("assistant", text(tokens)))
    assert sum(call[2] for call in warm.backend.calls) < sum(call[2] for call in cold.backend.calls) / 2


def test_reuse_keeps_the_question_and_the_answer_itself(make_engine):
    engine = make_engine("A plain answer")
    first = answer(engine, QUESTION)
    before = engine.stats.prompt_tokens + len(first) - 1  # the end token is sampled, never cached
    answer(engine, [*QUESTION, Message("assistant", text(first)), Message("user", "And?")])
    assert engine.stats.reused_tokens == before


def test_changed_history_is_computed_from_where_it_changed(make_engine):
    engine, cold = make_engine(), make_engine()
    answer(engine, [Message("user", "abcdef and more than that")], max_tokens=3)
    changed = [Message("user", "abcdeX and more than that")]
    assert answer(engine, changed, max_tokens=3) == answer(cold, changed, max_tokens=3)
    assert 0 < engine.stats.reused_tokens < engine.stats.prompt_tokens
    other = [Message("user", "?", (picture(1),))]
    answer(engine, other, max_tokens=2)
    changed = [Message("user", "?", (picture(2),))]
    assert answer(engine, changed, max_tokens=3) == answer(cold, changed, max_tokens=3)


def test_same_prompt_again_computes_one_row_only(make_engine):
    engine = make_engine()
    first = answer(engine, PICTURES, max_tokens=3)
    engine.backend.calls.clear()
    assert answer(engine, PICTURES, max_tokens=3) == first
    assert [call[2] for call in engine.backend.calls] == [1, 1, 1]


def test_prefill_ahead_leaves_the_answer_as_it_is(make_engine):
    engine, cold = make_engine(), make_engine()
    engine.prefill([Message("user", "", PICTURES[0].images)])
    assert {call[0] for call in engine.backend.calls} == {"encode", "decode"}
    engine.backend.calls.clear()
    assert answer(engine, PICTURES, max_tokens=5) == answer(cold, PICTURES, max_tokens=5)
    assert "encode" not in {call[0] for call in engine.backend.calls}
    assert engine.stats.reused_tokens >= engine.stats.image_tokens


def test_picture_seen_before_is_not_encoded_again(make_engine, tmp_path):
    engine = make_engine()
    path = tmp_path / "photo.png"
    picture(1, 2).save(path)
    answer(engine, [Message("user", "?", (path,))], max_tokens=1)
    assert engine.stats.tiles == 3
    engine.reset()
    for again in (path, str(path), path.read_bytes(), picture(1, 2)):
        answer(engine, [Message("user", f"other {type(again)}", (again,))], max_tokens=1)
        assert engine.stats.tiles == 0
    picture(2, 2).save(path)  # same name, another picture
    answer(engine, [Message("user", "?", (path,))], max_tokens=1)
    assert engine.stats.tiles == 3


def test_image_cache_is_bounded_and_what_it_dropped_is_encoded_again(make_engine, tmp_path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.png")
        picture(seed, 2).save(paths[-1])
    messages = [Message("user", "?", tuple(paths))]
    engine, cold = make_engine(image_cache_bytes=2 * 3 * 4 * 8 * 4), make_engine()  # two pictures of three tiles
    expected = answer(cold, messages, max_tokens=4)
    for _ in range(2):
        assert answer(engine, messages, max_tokens=4) == expected
        assert engine.stats.tiles == 9
        engine.reset()
    assert len(engine._encoder._embeddings) == 2


def test_not_causal_prompt_is_one_pass_and_shares_no_rows(make_engine):
    engine = make_engine(causal=False)
    tokens = answer(engine, [Message("user", "?", (picture(1, 2),))], max_tokens=3)
    count = engine.stats.prompt_tokens
    assert next(call for call in engine.backend.calls if call[0] == "decode") == ("decode", 0, count)
    answer(engine, [Message("user", "?", (picture(1, 2),))], max_tokens=3)
    assert engine.stats.reused_tokens == 0 and engine.stats.tiles == 0
    assert len(tokens) == 3


def test_not_causal_prefill_encodes_pictures_only(make_engine):
    engine = make_engine(causal=False)
    engine.prefill([Message("user", "", (picture(1, 2),))])
    assert [call[0] for call in engine.backend.calls] == ["encode"]


def test_image_cache_drops_the_least_recently_used(make_engine):
    engine = make_engine(image_cache_bytes=2 * 3 * 4 * 8 * 4)
    encoded = []
    for seed in (0, 1, 0, 2, 0, 1):
        engine.reset()
        answer(engine, [Message("user", "?", (picture(seed, 2),))], max_tokens=1)
        encoded.append(engine.stats.tiles)
    assert encoded == [3, 3, 0, 3, 0, 3]
