"""Ids to text, piece by piece: never half a character, never the beginning of a stop string.

id ──▶ Detokenizer ──text──▶ StopStrings ──text──▶ caller
       holds back an           holds back what may
       incomplete character    become a stop string
"""

from __future__ import annotations

from collections.abc import Sequence

from handlens_runtime.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental decoding whose pieces, joined, are the decoding of all ids at once.

    A token's text depends on its neighbours (a leading space that the first token loses, bytes of one character
    spread over tokens), so the window ids[start:] is decoded with some context and only what it adds is given out.
    While the window ends in U+FFFD its last character may still be incomplete, and nothing is given out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        """Leading ids of the window whose text was given out; they stay as context for the next ones."""

    def add(self, token_id: int) -> str:
        """The text that has become certain with this id, possibly empty."""
        self._ids.append(token_id)
        piece = self._new_text()
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return piece

    def flush(self) -> str:
        """What was held back; bytes that never became a character come out as U+FFFD."""
        piece = self._new_text()
        self._ids, self._shown = [], 0
        return piece

    def _new_text(self) -> str:
        shown = self._tokenizer.decode(self._ids[: self._shown])
        return self._tokenizer.decode(self._ids)[len(shown) :]


class StopStrings:
    """Passes text through up to the first stop string, however the text is cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that was met; it and what follows it are not given out."""

    def add(self, text: str) -> str:
        """The text that cannot be part of a stop string any more."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            # The first to be complete wins, so that the pieces' borders make no difference.
            _, at, self.found = min(hits)
            return self._take(at)
        return self._take(len(self._held) - self._beginning_at_end())

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        return "" if self.found is not None else self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _beginning_at_end(self) -> int:
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class TextStream:
    """A `Detokenizer` and `StopStrings` in a row."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stops.found is not None

    def add(self, token_id: int) -> str:
        """The text to show now."""
        return self._stops.add(self._detokenizer.add(token_id))

    def flush(self) -> str:
        """The rest of the text, at the end of an answer; may still meet a stop string."""
        return self._stops.add(self._detokenizer.flush()) + self._stops.flush()
