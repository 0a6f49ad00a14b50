"""The engine over the fake backend: what it computes is what a cold, one-shot run computes."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.errors import BackendError, BusyError, PromptError
from handlens_runtime.images.preprocess import prepare
from handlens_runtime.options import Options
from handlens_runtime.sampler import log_softmax

TILE = 16


def picture(seed, columns=1, rows=1):
    """A noise photograph that is cut into columns x rows tiles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * TILE, columns * TILE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def answer(engine, messages, **options):
    return list(engine.generate(messages, Options(**options)))


def ids(tokens):
    return [token.id for token in tokens]


def text(tokens):
    return "".join(token.text for token in tokens)


QUESTION = [Message("user", "What is the capital of France? Answer in one word, please.")]
PICTURES = [Message("user", "Compare them.", (picture(1, 2, 2), picture(2), picture(3, 3, 1)))]


def test_answer_is_streamed_up_to_the_end_token(make_engine):
    engine = make_engine("Paris, naïve 🦜 日本")
    tokens = answer(engine, QUESTION)
    assert text(tokens) == "Paris, naïve 🦜 日本"
    assert tokens[-1].id in engine.bundle.manifest.chat.stop_ids and tokens[-1].text == ""
    assert not any("\ufffd" in token.text for token in tokens)
    assert engine.stats.finish == "stop"


@pytest.mark.parametrize("messages", [QUESTION, PICTURES])
@pytest.mark.parametrize("chunk", [1, 7, 16, 500])
def test_chunks_answer_like_one_pass(make_engine, messages, chunk):
    def one_pass(manifest):
        manifest["sizes"].update(chunk=512, max_chunk=512)

    def chunked(manifest):
        manifest["sizes"].update(chunk=chunk, max_chunk=512)

    expected = answer(make_engine(change=one_pass), messages, max_tokens=12)
    engine = make_engine(change=chunked)
    assert answer(engine, messages, max_tokens=12) == expected
    prompt_passes = [call[1:] for call in engine.backend.calls if call[0] == "decode"][:-11]
    count = engine.stats.prompt_tokens
    assert prompt_passes == [(begin, min(chunk, count - begin)) for begin in range(0, count, chunk)]


def test_rows_of_pictures_are_their_embeddings_in_order(make_engine):
    engine = make_engine()
    answer(engine, PICTURES, max_tokens=1)
    rule = engine.bundle.manifest.image
    tiles = [prepare(image, rule).pixels for image in PICTURES[0].images]
    expected = np.concatenate([engine.backend.encode(batch)[0].reshape(-1, 8).copy() for batch in tiles])
    image_row = [isinstance(key, tuple) for key in engine._decoder.keys]
    np.testing.assert_array_equal(engine.backend.cache[: len(image_row)][image_row], expected)
    assert engine.stats.image_tokens == len(expected) == 4 * (5 + 1 + 4)


@pytest.mark.parametrize("cache", [0, 1 << 20], ids=["embeddings-do-not-fit", "embeddings-fit"])
def test_the_encoder_is_released_before_the_decoder_runs_and_comes_back(make_engine, cache):
    expected = answer(make_engine(), PICTURES, max_tokens=4)
    engine = make_engine(image_cache_bytes=cache, release_encoder=True)
    assert answer(engine, PICTURES, max_tokens=4) == expected
    names = [name for name, _, _ in engine.backend.calls]
    assert names.index("release") > names.index("encode") and names.index("release") < names.index("decode")
    # Each picture is encoded once, also where not all embeddings fit into their cache.
    assert names.count("release") == 1 and "encode" not in names[names.index("release") :]
    assert sum(tiles for name, _, tiles in engine.backend.calls if name == "encode") == 5 + 1 + 4
    engine.backend.calls.clear()
    if cache:
        assert answer(engine, PICTURES, max_tokens=4) == expected
        assert {name for name, _, _ in engine.backend.calls} == {"decode"}
    other = [Message("user", "And this?", (picture(4),))]
    engine.prefill(other)
    names = [name for name, _, _ in engine.backend.calls]
    assert names[-1] != "encode" and names.count("encode") == names.count("release") == 1


def test_the_encoder_is_released_also_where_a_run_is_stopped(make_engine):
    engine = make_engine(release_encoder=True)
    engine.backend.on_call = engine.stop
    engine.prefill(PICTURES)
    assert engine.stats.finish == "cancelled"
    assert [name for name, _, _ in engine.backend.calls] == ["encode", "release"]


def test_the_encoder_stays_unless_asked(make_engine):
    engine = make_engine()
    answer(engine, PICTURES, max_tokens=2)
    assert "release" not in {name for name, _, _ in engine.backend.calls}


def test_tiles_are_encoded_four_at_a_time(make_engine):
    engine = make_engine()
    answer(engine, [Message("user", "?", (picture(1, 3, 3),))], max_tokens=1)
    assert [call[2] for call in engine.backend.calls if call[0] == "encode"] == [4, 4, 2]
    assert engine.stats.tiles == 10


def test_every_way_to_end_is_named(make_engine):
    assert run_to_end(make_engine("one two three"), max_tokens=5) == ("one t", "length")
    assert run_to_end(make_engine("one two three"), stop=("wo th",)) == ("one t", "stop_string")
    assert run_to_end(make_engine("one t"), stop=("two",)) == ("one t", "stop")
    assert run_to_end(make_engine("日本"), max_tokens=4) == ("日\ufffd", "length")


def run_to_end(engine, **options):
    return text(answer(engine, QUESTION, **options)), engine.stats.finish


def test_full_context_ends_the_answer(make_engine):
    def narrow(manifest):
        manifest["sizes"].update(context=120)

    engine = make_engine(change=narrow)
    tokens = answer(engine, QUESTION, max_tokens=500)
    assert engine.stats.finish == "context"
    assert len(tokens) == 120 - engine.stats.prompt_tokens + 1
    assert engine._decoder.position == 120


def test_sampling_options_reach_the_sampler(make_engine):
    def settings(manifest):
        manifest["sampling"] = {"temperature": 2.0}

    engine = make_engine(change=settings)
    by_default = [ids(answer(engine, QUESTION, seed=seed, max_tokens=8)) for seed in (1, 1, 2)]
    assert by_default[0] == by_default[1] != by_default[2]
    greedy = [ids(answer(engine, QUESTION, temperature=0.0, seed=seed, max_tokens=8)) for seed in (1, 2)]
    assert greedy[0] == greedy[1] not in by_default
    assert ids(answer(engine, QUESTION, top_k=1, max_tokens=8)) == greedy[0]


def test_repetition_penalty_counts_the_prompt_and_the_answer(make_engine):
    assert text(answer(make_engine("zz"), QUESTION, max_tokens=2)) == "zz"
    assert text(answer(make_engine("zz"), QUESTION, max_tokens=2, repetition_penalty=1e6))[1:] != "z"
    assert text(answer(make_engine("F"), QUESTION, max_tokens=1, repetition_penalty=1e6)) != "F"  # as in France


def test_token_carries_its_log_probability_under_the_model(make_engine):
    engine = make_engine()
    tokens = answer(engine, QUESTION, temperature=3.0, seed=1, max_tokens=6)
    engine.reset()
    np.testing.assert_allclose(engine.score(QUESTION, ids(tokens)), [token.logprob for token in tokens])


def test_scores_are_teacher_forced(make_engine):
    engine = make_engine(vision=False)
    given = engine.tokenizer.encode("some text")
    backend = engine.backend
    expected = [
        log_softmax(backend.decode(backend.embed(np.array(given[:i])), 0))[given[i]] for i in range(1, len(given))
    ]
    np.testing.assert_allclose(engine.score_ids(given), expected)
    np.testing.assert_allclose(engine.score_ids(given), expected)
    assert len(engine.score(QUESTION, "Paris")) == 5
    for wrong, sentence in ([], "no ids"), ([0, 10_000], "id 10000"), ([-1], "id -1"):
        with pytest.raises(PromptError, match=sentence):
            engine.score_ids(wrong)
    np.testing.assert_allclose(engine.score_ids(given, len(given) - 2), expected[-2:])
    with pytest.raises(PromptError, match="A prompt of 10 cannot be taken from 9 ids"):
        engine.score_ids(given, 10)
    with pytest.raises(PromptError, match="answer to score 600 more"):
        engine.score(QUESTION, [1] * 601)


def test_programs_whose_shapes_contradict_the_manifest_are_refused(make_engine):
    with pytest.raises(BackendError, match="vision encoder returned shape"):
        answer(make_engine(change=lambda m: m["sizes"].update(width=9)), PICTURES)
    engine = make_engine()
    engine.backend.vocab_size = 5
    with pytest.raises(BackendError, match="logits of shape"):
        answer(engine, QUESTION)


def test_failed_pass_leaves_the_cache_as_it_was(make_engine):
    engine, cold = make_engine(), make_engine()
    prompt_passes = 3

    def fail():
        if len(engine.backend.calls) == prompt_passes:
            raise BackendError("fake: out of memory")

    engine.backend.on_call = fail
    with pytest.raises(BackendError, match="out of memory"):
        answer(engine, QUESTION, max_tokens=3)
    assert engine._decoder.position == (prompt_passes - 1) * 16 and engine.stats.finish is None
    assert answer(engine, QUESTION, max_tokens=3) == answer(cold, QUESTION, max_tokens=3)
    assert engine.stats.reused_tokens == (prompt_passes - 1) * 16


def test_stats_add_up(make_engine):
    engine = make_engine("four")
    answer(engine, PICTURES)
    stats = engine.stats
    assert (stats.tiles, stats.image_tokens, stats.reused_tokens, stats.generated_tokens) == (10, 40, 0, 5)
    assert stats.prompt_tokens == engine._decoder.position - 4
    assert stats.kv_bytes == engine.backend.kv_bytes
    assert stats.peak_memory_bytes > 10_000_000  # bytes, not KiB
    times = [stats.image_decode_s, stats.encode_s, stats.prefill_s, stats.decode_s]
    assert all(time > 0 for time in times) and stats.time_to_first_token_s >= sum(times[:3])
    assert stats.tokens_per_second == pytest.approx(4 / stats.decode_s)
    shown = stats.as_dict()
    assert shown["finish"] == "stop" and shown["tokens_per_second"] == stats.tokens_per_second


def test_rates_are_absent_where_nothing_was_measured(make_engine):
    engine = make_engine()
    assert engine.stats.tokens_per_second is None and engine.stats.prefill_tokens_per_second is None
    answer(engine, QUESTION, max_tokens=1)
    assert engine.stats.tokens_per_second is None and engine.stats.prefill_tokens_per_second > 0


def test_engine_opens_a_folder_and_names_a_missing_backend(make_folder):
    with pytest.raises(BackendError, match="no executorch program"):
        Engine(make_folder(), "executorch")


def test_no_torch_in_the_process():
    code = "import sys, handlens_runtime.engine; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_second_call_while_answering_is_refused(make_engine):
    engine = make_engine()
    first = engine.generate(QUESTION)
    next(first)
    for call in (
        lambda: engine.generate(QUESTION),
        lambda: engine.prefill(QUESTION),
        lambda: engine.score(QUESTION, "x"),
        engine.reset,
    ):
        with pytest.raises(BusyError, match="still answering"):
            call()
    first.close()
    answer(engine, QUESTION, max_tokens=1)
    waiting, other = engine.generate(QUESTION), engine.generate(QUESTION)
    next(waiting)
    with pytest.raises(BusyError):
        next(other)


def test_calls_from_other_threads_find_the_engine_busy(make_engine):
    engine, outcome = make_engine(), []
    inside, leave = threading.Event(), threading.Event()

    def wait():
        inside.set()
        leave.wait(10)

    engine.backend.on_call = wait
    thread = threading.Thread(target=lambda: outcome.append(answer(engine, QUESTION, max_tokens=1)))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(BusyError):
        engine.prefill(QUESTION)
    leave.set()
    thread.join(10)
    assert len(outcome[0]) == 1
