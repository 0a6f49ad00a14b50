"""Perplexity of a bundle on a text: how well it predicts what is written, with no chat template around it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlens_runtime.engine import Engine
from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation.scoring import Z
from handlens_runtime.tokenizer import Tokenizer

WINDOW = 512
Ids = tuple[int, ...]


@dataclass(frozen=True)
class PerplexityRatio:
    """Two runs on the same tokens."""

    ratio: float
    """This run's perplexity over the other's; above 1 where this one predicts worse."""
    interval: tuple[float, float]
    """95 % interval of the ratio, paired token by token."""


@dataclass(frozen=True)
class Perplexity:
    """One bundle on one text and one backend."""

    bundle: str
    """The bundle's name, from its manifest."""
    folder: Path
    """The bundle's, absolute."""
    backend: str
    path: Path
    sha256: str
    """The text's, as `sha256sum` prints it."""
    windows: tuple[Ids, ...]
    """What was fed, each from an empty cache."""
    after: int
    """How many of a window's tokens are a prompt; those behind are scored."""
    scores: NDArray[np.float64]
    """Log-probability of each scored token, (tokens,)."""
    dense: bool = False
    """Told to keep all of a prompt."""

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return len(self.scores)

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability. Raises EvaluationError where nothing was scored."""
        if not self.tokens:
            raise EvaluationError(f"No token of {self.path} was scored; let at least one window be.")
        return exp(-float(self.scores.mean()))

    @property
    def standard_error(self) -> float:
        """Of the perplexity, to first order; tokens count as independent."""
        return self.perplexity * float(self.scores.std()) / sqrt(self.tokens)

    def compare(self, other: Perplexity) -> PerplexityRatio:
        """This run over `other`. Raises EvaluationError where they did not score the same tokens."""
        if (self.windows, self.after) != (other.windows, other.after):
            raise EvaluationError(
                f"{self.folder} and {other.folder} did not score the same tokens of {self.path}, so their perplexities "
                "cannot be compared; compare bundles of one tokenizer with the same limit, window and prompt."
            )
        apart = other.scores - self.scores
        mean, half = float(apart.mean()), Z * float(apart.std()) / sqrt(len(apart))
        return PerplexityRatio(exp(mean), (exp(mean - half), exp(mean + half)))

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "bundle": self.bundle,
            "folder": str(self.folder),
            "backend": self.backend,
            "dense": self.dense,
            "after": self.after,
            "text": {"path": str(self.path), "sha256": self.sha256},
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "standard_error": self.standard_error,
        }


def read_text(path: Path) -> tuple[str, str]:
    """A text and the sha256 of its bytes. Raises EvaluationError."""
    try:
        content = path.read_bytes()
        return content.decode(), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}); give a text in UTF-8.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 at byte {error.start}; save the text in UTF-8.") from error


def windows(
    tokenizer: Tokenizer, text: str, length: int = WINDOW, limit: int | None = None, seed: int = 0, after: int = 1
) -> tuple[Ids, ...]:
    """The text's ids in windows of `length` that do not overlap, in order; the last may be shorter.

    `after`: how many of each are not scored. `limit`: score at most this many, in windows drawn by `seed` from the
    whole text; the last is cut.
    """
    ids = tokenizer.encode(text)
    cut = [tuple(ids[begin : begin + length]) for begin in range(0, len(ids), length)]
    cut = [window for window in cut if len(window) > after]
    if limit is None:
        return tuple(cut)
    chosen: dict[int, Ids] = {}
    for index in Random(seed).sample(range(len(cut)), len(cut)):
        if limit < 1:
            break
        chosen[index] = cut[index][: limit + after]
        limit -= len(chosen[index]) - after
    return tuple(chosen[index] for index in sorted(chosen))


def measure(
    engine: Engine,
    path: Path,
    *,
    window: int | None = None,
    after: int = 1,
    limit: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Perplexity:
    """Score the text at `path`, token by token, in windows no longer than the bundle's context.

    `after`: this many of a window's tokens are a prompt, of which a bundle may leave some out, and are not scored; a
    first token has nothing before it to be predicted from. `window`: left out, WINDOW and what a longer prompt takes.
    Ends early upon the engine's `stop()`, or where `stopped` is true before a window, with the windows done. Raises
    EvaluationError, BackendError, BusyError.
    """
    text, sha256 = read_text(path)
    length = min(window or WINDOW + (after if after > 1 else 0), engine.bundle.manifest.sizes.context)
    if not 1 <= after < length:
        raise EvaluationError(
            f"A prompt of {after} tokens leaves nothing to score in windows of {length}; choose 1 to {length - 1}."
        )
    asked = windows(engine.tokenizer, text, length, limit, after=after)
    if not asked:
        raise EvaluationError(
            f"{path} has fewer than {after + 1} tokens, and there is nothing to score; give a longer text."
        )
    name = engine.backend.name
    scores: list[NDArray[np.float64]] = []
    for done, ids in enumerate(asked, start=1):
        if stopped is not None and stopped():
            break
        found = engine.score_ids(ids, after)
        if engine.stats.finish == "cancelled":
            break
        scores.append(found)
        if progress is not None:
            progress(f"perplexity {name}", done / len(asked))
    joined = np.concatenate(scores) if scores else np.empty(0)
    made, scored = engine.bundle, asked[: len(scores)]
    return Perplexity(
        made.manifest.name, made.path, name, path, sha256, scored, after, joined, dense=engine.sparse is False
    )
