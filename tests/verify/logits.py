"""Logits of a program beside those of a torch network: the measures that several checks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from handlens_export.network.network import Network
from handlens_runtime.backends.base import Array, Backend, Rows, SparseBackend

Logits = NDArray[np.float32]


def cosine(found: Logits, expected: Logits) -> float:
    """Cosine of two rows."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Over the last axis, in double precision."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    out: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return out


def divergence(found: Logits, expected: Logits) -> float:
    """Kullback-Leibler divergence of `found` from `expected`, in nats."""
    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum())


@dataclass(frozen=True)
class Departure:
    """The first step at which two greedy runs choose differently."""

    step: int
    margin: float
    """Between the two best logits of the yardstick."""

    def within(self, noise: float) -> bool:
        """Whether each of the two best, off by `noise` in opposite directions, would swap.

        `noise` must come from elsewhere, never from the two runs at this step: whatever the fault, an argmax that
        differs lies within twice the difference that made it differ.
        """
        return self.margin <= 2 * noise

    def as_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        return {"step": self.step, "margin": round(self.margin, 4)}


def departure(step: int, found: Logits, expected: Logits) -> Departure | None:
    """What happens at a step that both runs reached by the same tokens; None where they choose the same."""
    if found.argmax() == expected.argmax():
        return None
    best = np.sort(expected)[-2:]
    return Departure(step, float(best[1] - best[0]))


class Recording:
    """A backend that keeps the logits of the passes since `logits` was last cleared."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.logits: list[Array] = []

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._backend.warnings

    @property
    def kv_bytes(self) -> int:
        return self._backend.kv_bytes

    def encode(self, tiles: Array) -> tuple[Array, Array]:
        return self._backend.encode(tiles)

    def release_encoder(self) -> None:
        self._backend.release_encoder()

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        return self._backend.embed(ids)

    def decode(self, rows: Rows, position: int) -> Array:
        logits = self._backend.decode(rows, position)
        self.logits.append(logits)
        return logits

    def decode_prompt(
        self, rows: Rows, position: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Array, NDArray[np.bool_]]:
        logits, kept = cast(SparseBackend, self._backend).decode_prompt(rows, position, stopped)
        self.logits.append(logits)
        return logits, kept


@torch.no_grad()
def eager_logits(network: Network, rows: torch.Tensor, chunk: int) -> Logits:
    """Logits (t, vocab_size) at every position of rows (1, t, width), in passes of `chunk` from an empty cache."""
    starts = range(0, rows.shape[1], chunk)
    logits: Logits = torch.cat([network.logits(rows[:, i : i + chunk], i)[0] for i in starts]).numpy()
    return logits


@torch.no_grad()
def eager_scores(network: Network, ids: Sequence[int], chunk: int) -> NDArray[np.float64]:
    """Log-probability of each of `ids` but the first, given those before it, in passes of `chunk`."""
    every = torch.tensor(ids)
    rows = network.decoder.embedding(every[None])
    scores = []
    for begin in range(0, len(ids) - 1, chunk):
        following = every[begin + 1 : begin + 1 + chunk]
        logits = network.logits(rows[:, begin : begin + len(following)], begin)[0].double()
        scores.append(logits.log_softmax(-1).gather(1, following[:, None])[:, 0])
    found: NDArray[np.float64] = torch.cat(scores).numpy()
    return found
