"""Conversations that cannot become a prompt are refused in one sentence, and leave the engine as it was."""

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.chat import Message
from handlens_runtime.errors import ImageError, PromptError
from handlens_runtime.options import Options

TILE = 16


def picture(seed, columns=1, rows=1):
    """A noise photograph that is cut into columns x rows tiles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * TILE, columns * TILE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def answer(engine, messages, **options):
    return list(engine.generate(messages, Options(**options)))


QUESTION = [Message("user", "What is the capital of France?")]


def test_prompt_that_does_not_fit_is_refused_with_numbers(make_engine):
    engine = make_engine()
    with pytest.raises(
        PromptError, match=r"has 6\d\d tokens, 0 of them for pictures, but the bundle's context holds 512"
    ):
        answer(engine, [Message("user", "x" * 600)])
    with pytest.raises(PromptError, match="fewer or smaller pictures"):
        answer(engine, [Message("user", "?", (picture(1, 3, 3),) * 20)])
    assert engine.backend.calls == []
    engine = make_engine(causal=False)
    with pytest.raises(PromptError, match=r"single decoder pass.*holds 128"):
        answer(engine, [Message("user", "x" * 200)])


def test_user_text_cannot_smuggle_image_tokens(make_engine):
    engine = make_engine()
    for words in ("<image>", "a<image><image>b", "<<image>image>"):
        answer(engine, [Message("user", words, (picture(1),))], max_tokens=1)
        assert engine.stats.image_tokens == 4
        answer(engine, [Message("user", words)], max_tokens=1)
        assert engine.stats.image_tokens == 0


def test_text_that_is_not_unicode_is_refused(make_engine):
    with pytest.raises(PromptError, match=r"character 3 \('\\udcff'\) is no text.*in UTF-8"):
        answer(make_engine(), [Message("user", "ab\udcff")])


def test_pictures_a_bundle_cannot_take_are_refused(make_engine, tmp_path):
    with pytest.raises(PromptError, match="reads text only"):
        answer(make_engine(vision=False), [Message("user", "?", (picture(1),))])
    with pytest.raises(PromptError, match="no messages"):
        answer(make_engine(), [])
    (tmp_path / "notes.txt").write_text("not a picture")
    engine = make_engine()
    with pytest.raises(ImageError, match=r"notes\.txt"):
        answer(engine, [Message("user", "?", (tmp_path / "notes.txt",))])
    assert len(answer(engine, QUESTION, max_tokens=2)) == 2


def test_single_question_bundle_refuses_a_second(make_engine):
    engine = make_engine(change=lambda manifest: manifest["chat"].update(multi_turn=False))
    answer(engine, [Message("system", "Be brief."), *QUESTION], max_tokens=1)
    with pytest.raises(PromptError, match="one question at a time"):
        answer(engine, [*QUESTION, Message("assistant", "Paris"), Message("user", "And?")])


def test_tile_markers_that_the_tokenizer_lacks_are_refused(make_engine):
    engine = make_engine(change=lambda manifest: manifest["image"].update(image_token="<picture>"))
    with pytest.raises(PromptError, match="0 image tokens '<picture>' for 4 embeddings"):
        answer(engine, [Message("user", "?", (picture(1),))])
