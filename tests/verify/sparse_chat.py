"""A chat with photographs whose tokens are chosen, that reuses its cache, beside a cold run of the same history."""

from __future__ import annotations

from functools import partial
from typing import Any

import bundles
import numpy as np
import reading
from logits import Departure, Recording, departure
from outcome import Cases, Outcome
from PIL import Image, ImageOps

from handlens_export.recipe import TAU, Recipe
from handlens_runtime import backends
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.golden.asking import DAY
from handlens_runtime.manifest import BackendName
from handlens_runtime.options import Options

BACKENDS: tuple[BackendName, ...] = ("executorch", "onnx")
TURNS, PICTURE_EVERY, ANSWER = 20, 4, 8
"""Of the chat; every how many turns a photograph is shown; tokens of an answer."""


def chat(backend: BackendName) -> Outcome:
    """Turns with photographs, whose tokens are chosen, and without; each beside a cold run of the same history."""
    loaded = Bundle.load(reading.bundle("sparse", Recipe(tau=TAU)))
    warm, cold = _Side(loaded, backend), _Side(loaded, backend)
    history: list[Message] = []
    lengths = positions = sparse = reused = 0
    differences, departures = [], []
    for turn in range(TURNS):
        shown = turn % PICTURE_EVERY == 0
        images = (_photograph(turn // PICTURE_EVERY),) if shown else ()
        history.append(Message("user", "What is written here?" if shown else f"And line {turn}?", images=images))
        ours, theirs = warm.answer(history), cold.answer(history, cold=True)
        lengths += warm.lengths() == cold.lengths()
        positions += warm.position == cold.position
        sparse += warm.engine.stats.sparse_tokens
        reused += warm.engine.stats.reused_tokens
        first = [side.recording.logits[-len(tokens)] for side, tokens in ((warm, ours), (cold, theirs))]
        differences.append(float(np.abs(first[0] - first[1]).max()))
        departs = _departure(warm, ours, cold, theirs)
        if departs is not None:
            departures.append({"turn": turn + 1, **departs.as_dict(), "within noise": departs.within(max(differences))})
        history.append(Message("assistant", warm.engine.tokenizer.decode(ours) or "Yes."))
    values = {
        "turns": TURNS,
        "turns whose cache lengths, of every layer, are equal": lengths,
        "whose positions are": positions,
        "whose answers are": TURNS - len(departures),
        "answers that depart": departures,
        "largest difference of a first logit": max(differences),
        "rows reused over all turns": reused,
        "rows that were chosen from": sparse,
        "rows at the end": warm.position,
        "each layer's cache at the end": warm.lengths(),
    }
    equal = lengths == positions == TURNS and all(one["within noise"] for one in departures)
    return Outcome(values, "equal at each turn, answers but for ties within noise", equal and reused > 0 and sparse > 0)


class _Side:
    """An engine that chooses wherever it may, and the logits that its backend gave."""

    def __init__(self, loaded: Bundle, backend: BackendName) -> None:
        self.inner: Any = backends.load(loaded, backend)
        self.recording = Recording(self.inner)
        self.engine = Engine(loaded, self.recording, sparse=True, now=lambda: DAY)

    def answer(self, history: list[Message], *, cold: bool = False) -> list[int]:
        """Greedy ids."""
        if cold:
            self.engine.reset()
        self.recording.logits.clear()
        return [token.id for token in self.engine.generate(history, Options(max_tokens=ANSWER, temperature=0.0))]

    @property
    def position(self) -> int:
        return self.engine._decoder.position

    def lengths(self) -> list[int]:
        """Of each layer's cache."""
        found: list[int] = self.inner._kept.at(self.position).tolist()
        return found


def _departure(warm: _Side, ours: list[int], cold: _Side, theirs: list[int]) -> Departure | None:
    found, expected = warm.recording.logits[-len(ours) :], cold.recording.logits[-len(theirs) :]
    for step, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return departure(step, found[step], expected[step])
    return None


def _photograph(number: int) -> Image.Image:
    """Two tiles wide."""
    paths = sorted((bundles.ROOT / "assets" / "photographs").glob("*.jpg"))
    return ImageOps.fit(Image.open(paths[number % len(paths)]).convert("RGB"), (448, 224))


CASES: Cases = {
    f"{backend}, {TURNS} turns with pictures like a cold run": partial(chat, backend) for backend in BACKENDS
}
