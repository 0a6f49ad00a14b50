"""How many rows each layer's cache holds, where layers keep different tokens of a prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class KeptRows:
    """Cache lengths at each position that a conversation can go back to.

    Every layer keeps all rows but those that a prompt's pass leaves out, so the lengths after each such pass tell all.
    """

    def __init__(self, layers: int) -> None:
        self._after = [(0, np.zeros(layers, np.int32))]

    def at(self, position: int) -> NDArray[np.int32]:
        """Rows in each layer's cache (layers,) once it holds the tokens before `position`; forgets what came after.

        `position` must not lie within a pass that left rows out.
        """
        while self._after[-1][0] > position:
            self._after.pop()
        begin, lengths = self._after[-1]
        return lengths + np.int32(position - begin)

    def note(self, position: int, kept: NDArray[np.bool_]) -> None:
        """A pass from `position` on kept these of its rows, (layers, t)."""
        if not kept.all():
            self._after.append((position + kept.shape[1], self.at(position) + kept.sum(1).astype(np.int32)))
