"""Which rows a cache keeps when the conversation goes on, or goes another way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from handlens_runtime.backends.kept_rows import KeptRows
from handlens_runtime.cached_decoder import CachedDecoder

VOCAB = 5


def never() -> bool:
    return False


class Fake:
    """Passes by position and length; of a sparse one, every second row is kept by the second layer."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, int]] = []

    def decode(self, rows: np.ndarray, position: int) -> np.ndarray:
        self.passes.append((position, len(rows)))
        return np.zeros(VOCAB, np.float32)

    def decode_prompt(
        self, rows: np.ndarray, position: int, stopped: Callable[[], bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        kept = np.ones((2, len(rows)), bool)
        kept[1, ::2] = False
        return self.decode(rows, position), kept


def decoder() -> CachedDecoder:
    """A prompt of 10 of which tokens were chosen, and an answer of 3."""
    made = CachedDecoder(Fake(), VOCAB)  # type: ignore[arg-type]
    made.run_sparse(np.zeros((10, 1)), range(10), never)
    for token in (10, 11, 12):
        made.run(np.zeros((1, 1)), [token])
    return made


def test_a_later_turn_goes_on_behind_the_answer() -> None:
    made = decoder()
    assert made.rewind(range(30), {(0, 10), (13, 30)}) == 13
    made.run_sparse(np.zeros((17, 1)), range(13, 30), never)
    assert made.rewind(range(40), {(0, 10), (13, 30)}) == 30


def test_there_is_no_way_back_into_a_span() -> None:
    made = decoder()
    assert made.rewind([0, 1, 2, 99], {(0, 4)}) == 0 == made.position
    made = decoder()
    assert made.rewind([*range(11), 99, 100], {(0, 10)}) == 11  # within the answer there is
    assert made.rewind(range(10), {(0, 10)}) == 0  # whose last row would have to run alone


def test_what_was_cut_otherwise_runs_again() -> None:
    assert decoder().rewind(range(20)) == 0  # now dense
    assert decoder().rewind(range(20), {(0, 12)}) == 0
    made = decoder()
    made.rewind(range(14), {(0, 10)})
    made.run(np.zeros((1, 1)), [13])
    assert made.rewind(range(20), {(0, 10), (12, 20)}) == 12  # was dense


def test_cache_lengths_follow_what_each_layer_kept() -> None:
    kept = KeptRows(2)
    assert kept.at(0).tolist() == [0, 0]
    kept.note(0, np.array([[True] * 10, [True, False] * 5]))
    assert kept.at(10).tolist() == [10, 5]
    assert kept.at(13).tolist() == [13, 8]
    kept.note(13, np.array([[True, True], [False, True]]))
    assert kept.at(15).tolist() == [15, 9] and kept.at(20).tolist() == [20, 14]
    assert kept.at(12).tolist() == [12, 7]  # back, before the second
    assert kept.at(20).tolist() == [20, 15]
    kept.note(20, np.ones((2, 4), bool))
    assert kept.at(0).tolist() == [0, 0] and kept.at(10).tolist() == [10, 10]
