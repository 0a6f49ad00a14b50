"""The curriculum: what is drawn, how large, and what is minimized, as a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from handlens_export.reader.draw import Grid, Mix
from handlens_export.reader.examples import trained_fonts
from handlens_export.reader.layouts import HELD_OUT, LAYOUTS
from handlens_export.reader.losses import Loss
from handlens_export.reader.questions import KINDS

ONE: tuple[Grid, ...] = ((1, 1),)
FEW: tuple[Grid, ...] = ((1, 1), (1, 1), (2, 1), (1, 2))
SMALL: tuple[Grid, ...] = (*FEW, (2, 2))
MANY: tuple[Grid, ...] = (*SMALL, (3, 1), (1, 3), (2, 3), (3, 2), (3, 3), (3, 4), (4, 4))
POINTERS: dict[Loss, float] = {"pointers": 0.3}
TRAINED = tuple(name for name in LAYOUTS if name not in HELD_OUT)


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum."""

    name: str
    until: float
    """Share of the run, 0 to 1, after which the next begins."""
    mix: Mix
    grids: tuple[Grid, ...]
    """One is drawn for each sheaf and for each step."""
    losses: dict[Loss, float] = field(hash=False)
    """Weight of each."""


def stages() -> tuple[Stage, ...]:
    """All of them, in order.

    The encoder learns letters from dense labels while the decoder learns to copy single strings from the oracle's
    rows; then the projector learns to make those rows; then whole pages, first of few tiles.
    """
    fonts = trained_fonts()
    strings = (*["single"] * 10, *["paragraph"] * 8, *["strings"] * 4, *TRAINED)
    letters = Mix("letters", strings, fonts, kinds=("transcribe", "place"), chat=0.01)
    pages = Mix("pages", (*TRAINED, "strings"), fonts, kinds=(*KINDS, "page"))
    return (
        Stage("letters", 0.15, letters, ONE, POINTERS | {"dense": 1.0, "language": 1.0}),
        Stage("align", 0.21, letters, ONE, POINTERS | {"dense": 0.5, "rows": 1.0, "language": 0.5, "answers": 0.2}),
        Stage("pages", 0.42, pages, SMALL, POINTERS | {"dense": 0.3, "rows": 0.2, "language": 0.5, "answers": 1.0}),
        Stage("large", 1.0, pages, (*FEW, *MANY), POINTERS | {"dense": 0.1, "answers": 1.0}),
    )


def further_stages(minutes: float) -> tuple[Stage, ...]:
    """For weights that read already, which come without the dense head: it learns first, by itself, for two minutes."""
    *_, pages, large = stages()
    losses: dict[Loss, float] = {"dense": 0.3, "answers": 1.0, **POINTERS}
    return (
        Stage("head", min(0.05, 2 / minutes), pages.mix, pages.grids, {"head": 1.0}),
        replace(pages, until=0.5, losses=losses),
        replace(large, losses=losses),
    )
