"""How a case is asked: the same when recorded and when replayed."""

from __future__ import annotations

from datetime import datetime

from handlens_runtime.backends.base import Backend
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.golden.pattern import pattern
from handlens_runtime.golden.schema import PictureName
from handlens_runtime.manifest import BackendName
from handlens_runtime.options import Options
from handlens_runtime.sampler import Scores, log_softmax

DAY = datetime(2025, 1, 1)
"""Some chat templates write today's date: all golden cases are asked on this day."""


def engine_for(bundle: Bundle, backend: BackendName | Backend) -> Engine:
    """An engine whose clock stands at DAY."""
    return Engine(bundle, backend, now=lambda: DAY)


def first_scores(engine: Engine, prompt: str, picture: PictureName | None) -> Scores:
    """Log-probabilities (vocab_size,) of the answer's first token, from an empty cache."""
    engine.reset()
    return log_softmax(engine.next_logits(_messages(prompt, picture)))


def greedy(engine: Engine, prompt: str, picture: PictureName | None, count: int) -> tuple[int, ...]:
    """The answer's first `count` tokens, fewer where it ends before."""
    # Emptied again, so that they start from the very pass that gave the scores, not from one of its last row alone.
    engine.reset()
    options = Options(max_tokens=count, temperature=0.0, repetition_penalty=1.0)
    return tuple(token.id for token in engine.generate(_messages(prompt, picture), options))


def _messages(prompt: str, picture: PictureName | None) -> list[Message]:
    return [Message("user", prompt, images=(pattern(),) if picture else ())]
