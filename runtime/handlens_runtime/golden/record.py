"""Bundle to golden.json's content: each backend's answers, and how far its own rounding noise moves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from handlens_runtime import backends
from handlens_runtime.backends.base import Array, Backend, Rows, SparseBackend
from handlens_runtime.bundle import Bundle
from handlens_runtime.engine import Engine
from handlens_runtime.errors import PromptError
from handlens_runtime.golden.asking import engine_for, first_scores, greedy
from handlens_runtime.golden.pattern import pattern
from handlens_runtime.golden.schema import Answer, Candidate, Case, Golden, PictureName
from handlens_runtime.images.decode import digest
from handlens_runtime.manifest import BackendName
from handlens_runtime.sampler import Scores

TEXTS = ("What is the capital of France?", "Count from one to ten.")
QUESTION = "What is in this picture?"
TOKENS = 16
BEST = 5
DECIMALS = 4
"""Of a recorded number: a thousandth of the least limit, and no noise of the last bits in the file."""

MIN_LIMIT = 0.1
"""Nats: about what 1 % of a logit of 10 is, the difference of ONNX Runtime's 4-bit products between CPUs."""
NOISE_FACTOR = 3.0
"""A machine may depart by this many times what the program departs from itself (as `check` allows)."""
NUDGE = 1e-6
CHUNKS = (24, 16, 12)
"""Rows of a prefill pass, one run each, with other nudges each; of a prompt with a picture, which is ten times as long,
the first alone.
"""


def record(bundle: Bundle, running: Sequence[Backend] = (), progress: Callable[[float], None] | None = None) -> Golden:
    """Ask the bundle's programs and write down what they answer.

    `running`: loaded backends; all of the bundle's where left out, one loaded at a time. A case that the bundle
    refuses is left out, with the reason. Raises BackendError where a program fails or gives no numbers.
    """
    asked: list[tuple[str, PictureName | None]] = [(text, None) for text in TEXTS]
    if bundle.manifest.image is not None:
        asked.append((QUESTION, "pattern"))
    answers: list[dict[BackendName, Answer]] = [{} for _ in asked]
    left_out: dict[str, None] = {}
    chosen: Sequence[Backend | BackendName] = running or tuple(bundle.manifest.backends)
    for index, one in enumerate(chosen):
        recorder = _Recorder(bundle, backends.load(bundle, one) if isinstance(one, str) else one)
        for done, (prompt, picture) in enumerate(asked):
            try:
                answers[done][recorder.name] = recorder.answer(prompt, picture)
            except PromptError as refusal:
                left_out[f"{prompt!r}: {refusal}"] = None
            if progress is not None:
                progress((index + (done + 1) / len(asked)) / len(chosen))
        del recorder
    cases = [_case(*one, found) for one, found in zip(asked, answers, strict=True) if found]
    return Golden(cases=tuple(cases), left_out=tuple(left_out))


def _case(prompt: str, picture: PictureName | None, answers: dict[BackendName, Answer]) -> Case:
    content = digest(pattern()) if picture else None
    return Case(prompt=prompt, picture=picture, picture_sha256=content, answers=answers)


def limit(scores: Scores, moved: Sequence[Scores], best: Sequence[int]) -> float:
    """Most that a log-probability of `best` may differ elsewhere: MIN_LIMIT, or NOISE_FACTOR times the noise.

    `moved` are what the same program gives where nothing but rounding differs. In a deep network int8 rounding
    amplifies a millionth to some tenths of a nat, and another CPU's order of summing is such a millionth: a fixed
    limit would condemn it (SmolLM2-135M with 4 bits: 0.15 to 0.85 nats, backend and prompt deciding).
    """
    noise = max(abs(float(one[token] - scores[token])) for one in moved for token in best)
    return max(MIN_LIMIT, NOISE_FACTOR * noise)


class _Recorder:
    """Asks one backend: still, and shaken in three ways."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._backend = _Shaken(backend)
        self.name: BackendName = "executorch" if backend.name == "executorch" else "onnx"
        self._still = engine_for(bundle, self._backend)
        self._shaken = {chunk: engine_for(_chunked(bundle, chunk), self._backend) for chunk in CHUNKS}

    def answer(self, prompt: str, picture: PictureName | None) -> Answer:
        """Raises PromptError where the bundle refuses the prompt."""
        self._backend.shake(None)
        scores = first_scores(self._still, prompt, picture)
        tokens = greedy(self._still, prompt, picture, TOKENS)
        best = [int(token) for token in np.argsort(-scores, kind="stable")[:BEST] if np.isfinite(scores[token])]
        shaken = list(self._shaken.items())[: 1 if picture else None]
        moved = [self._moved(engine, seed, prompt, picture) for seed, engine in shaken]
        return Answer(
            tokens=tokens,
            best=tuple(Candidate(id=token, logprob=round(float(scores[token]), DECIMALS)) for token in best),
            limit=round(limit(scores, moved, best), DECIMALS),
        )

    def _moved(self, engine: Engine, seed: int, prompt: str, picture: PictureName | None) -> Scores:
        self._backend.shake(seed)
        return first_scores(engine, prompt, picture)


def _chunked(bundle: Bundle, chunk: int) -> Bundle:
    """The bundle, with at most `chunk` rows a pass: kernels sum other numbers of rows in another order."""
    sizes = bundle.manifest.sizes
    sizes = sizes.model_copy(update={"chunk": min(chunk, sizes.chunk)})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"sizes": sizes}))


class _Shaken:
    """A backend whose decoder rows move by about a millionth; ids, where a text program embeds inside, stay.

    Remembers what it encoded: the picture is the same in all runs.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._random: np.random.Generator | None = None
        self._encoded: dict[bytes, tuple[Array, Array]] = {}

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._backend.warnings

    @property
    def kv_bytes(self) -> int:
        return self._backend.kv_bytes

    def shake(self, seed: int | None) -> None:
        """From now on with the nudges of `seed`; None stands still."""
        self._random = None if seed is None else np.random.default_rng(seed)

    def encode(self, tiles: Array) -> tuple[Array, Array]:
        key = tiles.tobytes()
        if key not in self._encoded:
            embeddings, features = self._backend.encode(tiles)
            self._encoded[key] = embeddings.copy(), features.copy()
        return self._encoded[key]

    def release_encoder(self) -> None:
        self._backend.release_encoder()

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        return self._backend.embed(ids)

    def decode(self, rows: Rows, position: int) -> Array:
        return self._backend.decode(self._nudged(rows), position)

    def decode_prompt(
        self, rows: Rows, position: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Array, NDArray[np.bool_]]:
        return cast(SparseBackend, self._backend).decode_prompt(self._nudged(rows), position, stopped)

    def _nudged(self, rows: Rows) -> NDArray[Any]:
        if self._random is None or rows.ndim == 1:
            return rows
        return (rows * (1 + NUDGE * self._random.standard_normal(rows.shape))).astype(rows.dtype)
