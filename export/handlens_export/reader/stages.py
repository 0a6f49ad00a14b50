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
    frozen: bool = False
    """Whether the encoder stays as it is."""


def stages() -> tuple[Stage, ...]:
    """All of them, in order.

    The encoder learns letters from dense labels while the decoder learns to copy single strings from the oracle's
    rows; then the projector learns to make those rows; then whole pages, first of few tiles.
    """
    fonts = trained_fonts()
    strings = (*["single"] * 10, *["paragraph"] * 8, *["strings"] * 4, *TRAINED)
    letters = Mix("letters", strings, fonts, kinds=("transcribe", "place"), chat=0.01)
    pages = Mix("pages", (*TRAINED, "strings"), fonts, kinds=(*KINDS, "page"))
    first: dict[Loss, float] = {"dense": 1.0, "language": 1.0}
    align: dict[Loss, float] = {"dense": 0.5, "slots": 0.3, "rows": 1.0, "language": 0.5, "answers": 0.2}
    small: dict[Loss, float] = {"dense": 0.3, "slots": 0.3, "rows": 0.2, "language": 0.5, "answers": 1.0}
    large: dict[Loss, float] = {"dense": 0.1, "slots": 0.1, "answers": 1.0}
    return (
        Stage("letters", 0.15, letters, ONE, first | POINTERS),
        Stage("align", 0.21, letters, ONE, align | POINTERS),
        Stage("pages", 0.42, pages, SMALL, small | POINTERS),
        Stage("large", 1.0, pages, (*FEW, *MANY), large | POINTERS),
    )


def further_stages(minutes: float, frozen: bool = False) -> tuple[Stage, ...]:
    """For weights that read already, which come without the heads that tell what stands under a patch: these learn
    first, by themselves, for two minutes. `frozen`: the encoder stays as it is.
    """
    *_, pages, large = stages()
    losses: dict[Loss, float] = {"slots": 0.3, "answers": 1.0, **POINTERS}
    if not frozen:
        losses |= {"dense": 0.3}
    return (
        Stage("heads", min(0.05, 2 / minutes), pages.mix, pages.grids, {"heads": 1.0}),
        replace(pages, until=0.5, losses=losses, frozen=frozen),
        replace(large, losses=losses, frozen=frozen),
    )
