"""An engine is asked a set: order, reuse, limits, stopping; and a text's perplexity."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.chat import Message
from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation import ask, evaluate, measure, read_set, windows


@pytest.fixture
def questions(tmp_path):
    """Two pictures, three questions each, written in turns."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for shade, name in ((40, "a"), (200, "b")):
        Image.new("RGB", (32, 16), (shade, 0, 0)).save(folder / f"{name}.png")
    lines = [
        {"image": f"{name}.png", "question": f"Q{i}?", "answer": answer, "kind": "field", "group": name}
        for i, answer in enumerate(("12.40", "12.41", "no"))
        for name in "ab"
    ]
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "set.jsonl"


def test_every_question_is_answered_from_a_conversation_of_its_own(make_engine, questions):
    told, seen = [], []
    engine = make_engine("12.40")
    found = evaluate(
        engine, read_set(questions), progress=lambda what, share: told.append((what, share)), each=seen.append
    )
    assert [answer.text for answer in found.answers] == ["12.40"] * 6
    assert tuple(seen) == found.answers
    assert (found.overall.exact_match, found.backend, found.bundle) == (2 / 6, "onnx", "fake")
    assert found.overall.character_accuracy == pytest.approx((1 + 0.8 + 0) / 3)
    assert told[-1] == ("evaluate onnx", 1.0) and len(told) == 6
    assert all(answer.image_tokens > 0 for answer in found.answers)


def test_a_picture_is_encoded_once_and_its_rows_are_kept(make_engine, questions):
    engine = make_engine("yes")
    reused, encoded = [], []
    for _ in ask(engine, read_set(questions)):
        reused.append(engine.stats.reused_tokens > engine.stats.image_tokens)
        encoded.append(engine.stats.tiles > 0)
    assert reused == [False, True, True] * 2
    assert encoded == [True, False, False] * 2


def test_an_answer_that_goes_on_is_not_cut_to_the_right_length(make_engine, questions):
    # A token a byte: cut at each answer's own length, "no more, …" would be "no".
    engine = make_engine("12.40 and so on, without an end in sight")
    assert evaluate(engine, read_set(questions)).overall.exact_match == 0
    assert engine.stats.finish == "length" and engine.stats.generated_tokens == len("12.40") + 8


def test_the_bundles_own_sampling_is_not_used(make_engine, questions):
    hot = make_engine(change=lambda m: m.update(sampling={"temperature": 5.0, "repetition_penalty": 3.0}))
    chosen = read_set(questions)
    assert evaluate(hot, chosen).answers == evaluate(hot, chosen).answers


def test_a_stop_keeps_the_answers_that_are_whole(make_engine, questions):
    engine = make_engine("12.40")
    seen = []

    def stop_in_the_third(answer):
        seen.append(answer)
        if len(seen) == 2:
            engine.backend.on_call = engine.stop

    found = evaluate(engine, read_set(questions), each=stop_in_the_third)
    assert [answer.text for answer in found.answers] == ["12.40", "12.40"]


def test_what_cannot_be_asked_names_file_and_line(make_engine, questions):
    with pytest.raises(EvaluationError, match=r"set\.jsonl, line 1, shows a picture, but .* reads text only"):
        evaluate(make_engine("yes", vision=False), read_set(questions))
    (questions.parent / "b.png").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"set\.jsonl, line 2: .*b\.png"):
        evaluate(make_engine("yes"), read_set(questions))


TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about."


def test_perplexity_is_that_of_its_windows_scored_by_hand(make_engine, tmp_path):
    path = tmp_path / "whale.txt"
    path.write_text(TEXT)
    engine = make_engine(vision=False)
    found = measure(engine, path, window=40)
    by_hand = np.concatenate([engine.score_ids(engine.tokenizer.encode(TEXT[i : i + 40])) for i in (0, 40, 80)])
    assert found.tokens == len(TEXT) - 3
    assert found.perplexity == pytest.approx(math.exp(-by_hand.mean()))
    assert found.standard_error == pytest.approx(found.perplexity * by_hand.std() / found.tokens**0.5)


def test_what_follows_a_prompt_is_scored_alone(make_engine, tmp_path):
    path = tmp_path / "whale.txt"
    path.write_text(TEXT)
    engine = make_engine(vision=False)
    found = measure(engine, path, window=40, after=30)
    whole = [engine.score_ids(engine.tokenizer.encode(TEXT[i : i + 40])) for i in (0, 40)]  # the rest is a prompt alone
    np.testing.assert_allclose(found.scores, np.concatenate([scores[29:] for scores in whole]))
    assert sorted(len(ids) for ids in measure(engine, path, window=40, after=30, limit=12).windows) == [32, 40]
    with pytest.raises(EvaluationError, match="did not score the same tokens"):
        found.compare(measure(engine, path, window=40, after=29))
    with pytest.raises(EvaluationError, match="A prompt of 40 tokens leaves nothing to score in windows of 40"):
        measure(engine, path, window=40, after=40)


def test_a_limit_of_tokens_comes_from_the_whole_text(make_engine):
    tokenizer = make_engine(vision=False).tokenizer
    ids = tokenizer.encode(TEXT)
    part = windows(tokenizer, TEXT, 10, limit=20)
    assert sum(len(window) - 1 for window in part) == 20
    assert part == windows(tokenizer, TEXT, 10, limit=20) != windows(tokenizer, TEXT, 10)[: len(part)]
    assert windows(tokenizer, TEXT, 10, limit=1000) == windows(tokenizer, TEXT, 10)
    assert windows(tokenizer, TEXT[:11], 10) == (tuple(ids[:10]),)  # a last window of one token scores nothing


def test_two_runs_on_a_text_are_compared_token_by_token(make_engine, tmp_path):
    path = tmp_path / "whale.txt"
    path.write_text(TEXT)
    engine = make_engine(vision=False)
    found = measure(engine, path)
    assert found.compare(found).ratio == 1 and found.compare(found).interval == (1, 1)
    with pytest.raises(EvaluationError, match="did not score the same tokens"):
        found.compare(measure(engine, path, window=40))


def test_a_text_that_cannot_be_scored_is_refused(make_engine, tmp_path):
    path, engine = tmp_path / "text.txt", make_engine(vision=False)
    for content, said in ((b"a", "fewer than 2 tokens"), (b"ab\xff", "not UTF-8 at byte 2")):
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=said):
            measure(engine, path)


def test_a_perplexity_that_is_stopped_keeps_its_whole_windows(make_engine, tmp_path):
    path = tmp_path / "whale.txt"
    path.write_text(TEXT)
    engine = make_engine(vision=False)
    found = measure(engine, path, window=40, progress=lambda *_: setattr(engine.backend, "on_call", engine.stop))
    assert (len(found.windows), found.tokens) == (1, 39)
    engine.generate([Message("user", "Still there?")])
