"""The rows of a sweep, kept in a file as they come, so that a stopped sweep goes on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from handlens_export.errors import TargetError

FILE = "sweep.json"


@dataclass(frozen=True)
class Row:
    """One variant, or the float network."""

    name: str
    method: str
    bits: int
    group: int | None
    bits_per_weight: float
    """Of the decoder's linears, scales included, as the first backend stores them."""
    bytes: int
    """Of the decoder's weights there."""
    perplexity: float | None
    exact_match: float | None
    kl: float | None
    """Mean divergence of the next token from the float network's, in nats; None for a network that gives no numbers."""
    seconds: float
    """To quantize; less where layers were kept from before."""


@dataclass
class Table:
    """What a sweep found."""

    checkpoint: str
    inputs: str
    """sha256 over the checkpoint's weights, all that it was tried and measured on, and the code."""
    parameters: int
    """Of the decoder's layers: what the law of `advise` calls N."""
    tokens: int = 0
    """Of the text, that were predicted."""
    questions: int = 0
    """That were asked: those that fit into the context."""
    rows: list[Row] = field(default_factory=list)

    @property
    def exact(self) -> Row | None:
        """The float network's row."""
        return next((row for row in self.rows if row.bits == 32), None)

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Whole or not at all, into a folder that exists. Raises TargetError."""
        part = folder / f".{FILE}.part"
        try:
            part.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
            os.replace(part, folder / FILE)
        except OSError as error:
            raise TargetError(f"{folder} cannot be written to ({error.strerror}); choose another with -o.") from error


def read(folder: Path) -> Table | None:
    """What a folder holds of an earlier sweep; None where there is none. Raises TargetError where it cannot be read."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Table(**{**held, "rows": [Row(**row) for row in held["rows"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TargetError(f"{path} is no table of a sweep ({error}); remove it, or choose another folder.") from error
