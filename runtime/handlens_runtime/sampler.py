"""Logits to the next token's id: transformers' processors, in its order, in numpy.

repetition penalty ─▶ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ draw
                 └─ temperature 0 ─▶ argmax
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from handlens_runtime.errors import BackendError
from handlens_runtime.manifest import SamplingDefaults

Logits = NDArray[np.float32]
Scores = NDArray[np.float64]
"""(vocab_size,); -inf where a token is ruled out."""


class Sampler:
    """Draws tokens for one generation; it remembers which tokens the repetition penalty applies to."""

    def __init__(self, settings: SamplingDefaults, prompt_ids: Iterable[int] = (), seed: int | None = None) -> None:
        """`prompt_ids` count as seen for the repetition penalty; `seed` None draws differently each time."""
        self._settings = settings
        self._seen = set(prompt_ids)
        self._random = np.random.default_rng(seed)

    def sample(self, logits: Logits) -> int:
        """The next token's id. Raises BackendError where the logits (vocab_size,) are not numbers."""
        check_finite(logits)
        scores = self.scores(logits)
        token = int(np.argmax(scores)) if self._settings.temperature == 0 else self._draw(scores)
        self._seen.add(token)
        return token

    def scores(self, logits: Logits) -> Scores:
        """Logits after every processor; -inf where a token is ruled out."""
        settings = self._settings
        scores = repetition_penalty(logits.astype(np.float64), self._seen, settings.repetition_penalty)
        if settings.temperature == 0:
            return scores
        # From the maximum down, so that a tiny temperature overflows to -inf (ruled out), never to inf.
        with np.errstate(over="ignore"):
            scores = (scores - scores.max()) / settings.temperature
        return min_p(top_p(top_k(scores, settings.top_k), settings.top_p), settings.min_p)

    def _draw(self, scores: Scores) -> int:
        cumulative = np.cumsum(_softmax(scores))
        # Scaled by the last sum, so that rounding never lets the draw run past the end.
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def log_softmax(logits: Logits) -> Scores:
    """Log-probabilities (vocab_size,) of the model itself, before any sampling option."""
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def check_finite(logits: Logits) -> None:
    """Raise BackendError unless every logit is a number; -inf may rule a token out."""
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        raise BackendError(
            "The decoder returned logits that are not finite numbers; run `handlens check` on the bundle to find the "
            "stage at fault, or export it again with other quantization."
        )


def repetition_penalty(scores: Scores, seen: Iterable[int], penalty: float) -> Scores:
    """Divide positive and multiply negative scores of `seen` tokens by `penalty` (Keskar et al. 2019, section 4.1)."""
    ids = np.fromiter((token for token in seen if token < scores.size), dtype=np.int64)
    if penalty == 1.0 or ids.size == 0:
        return scores
    changed = scores.copy()
    changed[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
    return changed


def top_k(scores: Scores, k: int) -> Scores:
    """Keep the `k` highest scores, and what equals the last of them; 0 keeps all (Fan et al. 2018)."""
    if k == 0 or k >= scores.size:
        return scores
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def top_p(scores: Scores, p: float) -> Scores:
    """Keep the most probable tokens whose probabilities together reach `p`, at least one (Holtzman et al. 2020)."""
    if p >= 1.0:
        return scores
    order = np.argsort(scores, kind="stable")
    removed = np.cumsum(_softmax(scores)[order]) <= 1 - p
    removed[-1] = False
    kept = scores.copy()
    kept[order[removed]] = -np.inf
    return kept


def min_p(scores: Scores, p: float) -> Scores:
    """Keep tokens at least `p` times as probable as the most probable one (Nguyen et al. 2024)."""
    if p == 0.0:
        return scores
    probabilities = _softmax(scores)
    return np.where(probabilities < p * probabilities.max(), -np.inf, scores)


def _softmax(scores: Scores) -> Scores:
    exponentials = np.exp(scores - scores.max())
    return np.asarray(exponentials / exponentials.sum())
