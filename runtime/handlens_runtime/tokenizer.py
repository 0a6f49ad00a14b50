"""The bundle's tokenizer: text to ids and back. Knows nothing about chat or pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from handlens_runtime.errors import BundleError


class Tokenizer:
    """`tokenizer.json`, read by the tokenizers library."""

    def __init__(self, path: Path) -> None:
        """Read the file at `path`. Raises BundleError where it is no tokenizer."""
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer ({error}); export the bundle again.") from error
        # A checkpoint's tokenizer.json may carry a training-time truncation or padding: a prompt wants neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text; special tokens written in it become their ids.

        `add_special_tokens` lets the tokenizer's post-processor add its own (begin of text, …).
        """
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 come out as U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def id_of(self, token: str) -> int | None:
        """Id of a token, None where the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))
