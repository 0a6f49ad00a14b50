"""Stopping and leaving early, at every step there is: the engine answers the next question as if nothing had been."""

import gc
import threading

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.chat import Message
from handlens_runtime.options import Options

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
MESSAGES = [Message("user", "What is in this picture?", (PHOTO,))]
OPTIONS = Options(max_tokens=6)


@pytest.fixture
def expected(make_engine):
    """Tokens of an undisturbed run, and how many backend calls it took."""
    engine = make_engine()
    return list(engine.generate(MESSAGES, OPTIONS)), len(engine.backend.calls)


def test_stop_is_honoured_after_every_step_and_leaves_no_trace(make_engine, expected):
    tokens, calls = expected
    assert calls > 12
    for step in range(1, calls):  # the last call gives the last token: nothing is left to stop
        engine = make_engine()
        seen = engine.backend.calls
        engine.backend.on_call = lambda e=engine, s=step: e.stop() if len(e.backend.calls) == s else None
        got = list(engine.generate(MESSAGES, OPTIONS))
        assert engine.stats.finish == "cancelled"
        assert len(seen) == step, "a step was begun after stop()"
        assert got == tokens[: len(got)]
        engine.backend.on_call = lambda: None
        assert list(engine.generate(MESSAGES, OPTIONS)) == tokens
        assert engine.stats.finish == "length"


def test_stop_between_tokens(make_engine, expected):
    engine = make_engine()
    got = []
    for token in engine.generate(MESSAGES, OPTIONS):
        got.append(token)
        if len(got) == 3:
            engine.stop()
    assert got == expected[0][:3] and engine.stats.finish == "cancelled"


def test_stop_before_the_first_token_is_asked_for(make_engine):
    engine = make_engine()
    waiting = engine.generate(MESSAGES, OPTIONS)
    engine.stop()
    assert list(waiting) == [] and engine.backend.calls == []


def test_late_stop_does_not_reach_the_next_run(make_engine, expected):
    engine = make_engine()
    list(engine.generate(MESSAGES, OPTIONS))
    engine.stop()
    assert list(engine.generate(MESSAGES, OPTIONS)) == expected[0]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_abandoned_iterator_leaves_the_engine_usable(make_engine, expected, count):
    engine = make_engine()
    iterator = engine.generate(MESSAGES, OPTIONS)
    for _ in range(count):
        next(iterator)
    del iterator
    gc.collect()
    assert engine.stats.finish is None
    assert list(engine.generate(MESSAGES, OPTIONS)) == expected[0]


def test_stop_ends_prefill_and_score_quietly(make_engine):
    engine = make_engine()
    engine.backend.on_call = engine.stop
    engine.prefill(MESSAGES)
    assert engine.stats.finish == "cancelled" and len(engine.backend.calls) == 1
    engine.backend.on_call = lambda: engine.stop() if engine.stats.prefill_s else None
    assert len(engine.score(MESSAGES, "a longer answer")) < len("a longer answer")
    assert engine.stats.finish == "cancelled"
    assert len(engine.score_ids([1, 2, 3])) == 2


def test_stop_from_another_thread(make_engine):
    engine = make_engine()
    started = threading.Event()
    engine.backend.on_call = started.set
    stopper = threading.Thread(target=lambda: started.wait(10) and engine.stop())
    stopper.start()
    for _ in engine.generate(MESSAGES, Options(max_tokens=400)):
        stopper.join(10)
    assert engine.stats.finish == "cancelled"


def test_image_encoded_by_half_is_not_kept(make_engine, expected):
    engine = make_engine()
    engine.backend.on_call = engine.stop  # after the first of three batches
    engine.prefill(MESSAGES)
    engine.backend.on_call = lambda: None
    engine.backend.calls.clear()
    assert list(engine.generate(MESSAGES, OPTIONS)) == expected[0]
    assert engine.stats.tiles == 10
