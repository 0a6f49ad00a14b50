"""A chat of twenty turns that reuses its cache, beside a cold run of the same history at each turn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import bundles
import numpy as np
from logits import Departure, Recording, departure
from numpy.typing import NDArray
from outcome import Cases, Outcome

from handlens_runtime import backends
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine, Token
from handlens_runtime.options import Options

BACKENDS = ("executorch", "onnx")
GREEDY = 32
MOST = 1e-2
NOISE_FACTOR = 1.5
BAR = (
    f"greedy tokens equal or within noise at each turn; |log-likelihood apart| <= {MOST} a token of all answers, or "
    "else no different from zero (within two standard errors) with tokens no further apart than two cold runs are that "
    f"differ in chunk length alone (within {NOISE_FACTOR} times)"
)
TURNS = (
    ("What is the capital of France?", "The capital of France is Paris, a city of about two million people."),
    ("Which river flows through it?", "The Seine flows through Paris, from the south-east to the west."),
    ("Name three famous buildings there.", "The Eiffel Tower, the Louvre, and the cathedral of Notre-Dame."),
    ("Which of them is the oldest?", "Notre-Dame is the oldest. Its first stone was laid in the year 1163."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted it at the beginning of the sixteenth century."),
    ("Where can I see that painting?", "It hangs in the Louvre, in a large room on the first floor."),
    ("How do I get there by train from Berlin?", "Take a fast train to Cologne or Frankfurt and change there."),
    ("How long does the journey take?", "It takes about eight hours, including the time to change trains."),
    ("What should I pack for a weekend in spring?", "Pack a light coat, an umbrella, good shoes and a warm sweater."),
    ("Can you turn that into a short list?", "1. Coat\n2. Umbrella\n3. Shoes\n4. Sweater"),
    ("What is the weather like in April?", "It is mild, with some sun and some rain. Afternoons reach 16 degrees."),
    ("Is it colder than in Rome?", "Yes, Rome is a few degrees warmer and has more hours of sunshine in April."),
    ("Translate 'good morning' into French.", "In French, one says 'bonjour' to wish somebody a good morning."),
    ("And into Italian?", "In Italian, one says 'buongiorno', which also means good day."),
    ("What is 17 times 3?", "17 times 3 is 51, because 10 times 3 is 30 and 7 times 3 is 21."),
    ("Now add 9 to that.", "51 plus 9 is 60."),
    ("Write one sentence about the sea.", "The sea breathes against the shore, patient and grey under the wind."),
    ("Make it rhyme.", "The sea breathes slowly on the shore, and every wave asks for one more."),
    ("Which question did I ask first?", "You first asked me what the capital of France is."),
    ("Thank you. Say goodbye in one sentence.", "It was a pleasure to talk with you, and I wish you a safe journey."),
)
"""Questions, and the answers that stay in the history and are scored: given ones, for a side's own would favour it."""


def chat(backend: str) -> Outcome:
    """At each turn: greedy tokens of both, then the given answer scored by both and by a cold run in other chunks."""
    bundle = Bundle.load(bundles.smollm2(32))
    sizes = bundle.manifest.sizes
    half = bundle.manifest.model_copy(update={"sizes": sizes.model_copy(update={"chunk": sizes.chunk // 2})})
    warm, cold, other = (_Side(one, backend) for one in (bundle, bundle, replace(bundle, manifest=half)))
    history: list[Message] = []
    departures: list[tuple[int, Departure]] = []
    apart, noise, reused = [], [], 0
    for turn, (question, answer) in enumerate(TURNS):
        history.append(Message("user", question))
        departs = _compare(warm, warm.greedy(history, cold=False), cold, cold.greedy(history, cold=True))
        reused += warm.reused
        if departs is not None:
            departures.append((turn + 1, departs))
        expected = cold.score(history, answer, cold=True)
        apart.append(warm.score(history, answer, cold=False) - expected)
        noise.append(other.score(history, answer, cold=True) - expected)
        history.append(Message("assistant", answer))
    found, floor = _Apart(apart), _Apart(noise)
    within = all(departs.within(floor.worst) for _, departs in departures)
    values = {
        "turns": len(TURNS),
        "rows reused over all turns": reused,
        "answers that depart": [{"turn": turn, **departs.as_dict()} for turn, departs in departures],
        "log-likelihood apart": found.as_dict(),
        "of two cold runs, in chunks of 128 and of 64": floor.as_dict(),
        f"apart <= {MOST} a token": found.mean <= MOST,
    }
    like_noise = found.mean <= 2 * found.error and found.deviation <= NOISE_FACTOR * floor.deviation
    return Outcome(values, BAR, within and reused > 0 and (found.mean <= MOST or like_noise))


class _Apart:
    """Differences of log-probabilities, token by token."""

    def __init__(self, turns: list[NDArray[np.float64]]) -> None:
        every = np.concatenate(turns)
        self.tokens = len(every)
        self.mean = abs(float(every.mean()))
        self.deviation = float(every.std())
        self.error = self.deviation / len(every) ** 0.5
        self.worst = float(np.abs(every).max())
        self.worst_turn = max(abs(float(turn.mean())) for turn in turns)

    def as_dict(self) -> dict[str, float]:
        """For the JSON line."""
        return {
            "a token of all answers": self.mean,
            "standard error": self.error,
            "standard deviation of a token": self.deviation,
            "a token of the worst answer": self.worst_turn,
            "the worst token": self.worst,
            "tokens": self.tokens,
        }


class _Side:
    """An engine and the logits that its backend gave."""

    def __init__(self, bundle: Bundle, backend: str) -> None:
        self.recording = Recording(backends.load(bundle, backend))
        self.engine = Engine(bundle, self.recording)
        self.reused = 0

    def greedy(self, history: list[Message], *, cold: bool) -> list[Token]:
        """The answer's first tokens."""
        self._begin(cold)
        tokens = list(self.engine.generate(history, Options(max_tokens=GREEDY, temperature=0.0)))
        self.reused = self.engine.stats.reused_tokens
        return tokens

    def score(self, history: list[Message], answer: str, *, cold: bool) -> NDArray[np.float64]:
        """Log-probability of each token of an answer."""
        self._begin(cold)
        return self.engine.score(history, answer)

    def _begin(self, cold: bool) -> None:
        self.recording.logits.clear()
        if cold:
            self.engine.reset()


def _compare(warm: _Side, ours: list[Token], cold: _Side, theirs: list[Token]) -> Departure | None:
    # The last pass over the prompt gives the first token's logits, and each token but the last one more pass.
    found, expected = warm.recording.logits[-len(ours) :], cold.recording.logits[-len(theirs) :]
    for step, pair in enumerate(zip(ours, theirs, strict=False)):
        if pair[0].id != pair[1].id:
            return departure(step, found[step], expected[step])
    return None


CASES: Cases = {f"{backend}, {len(TURNS)} turns like a cold run": partial(chat, backend) for backend in BACKENDS}
