"""The curriculum: what each stage of training draws, what it minimizes, and where it starts from."""

from __future__ import annotations

from dataclasses import dataclass

from handlens_export.reader.batches import Mix
from handlens_export.reader.examples import trained_fonts
from handlens_export.reader.layouts import HELD_OUT, LAYOUTS
from handlens_export.reader.losses import Loss
from handlens_export.reader.questions import KINDS

ONE: tuple[tuple[int, int], ...] = ((1, 1),)
FEW: tuple[tuple[int, int], ...] = ((1, 1), (1, 1), (2, 1), (1, 2))
MANY: tuple[tuple[int, int], ...] = (*FEW, (2, 2), (3, 1), (1, 3), (2, 3), (3, 2), (3, 3), (3, 4), (4, 4))
TRAINED = tuple(name for name in LAYOUTS if name not in HELD_OUT)


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum."""

    mix: Mix
    losses: dict[Loss, float]
    """Weight of each."""
    steps: int
    learning_rate: float
    """Warmed up over the first 200 steps, and brought to zero over the last quarter."""
    after: tuple[str, ...] = ()
    """Stages whose weights it starts from, later ones' over earlier ones'."""
    frozen: tuple[str, ...] = ()
    """Prefixes of the weights that it leaves as they are."""


def stages() -> dict[str, Stage]:
    """All of them, in order. `dense` needs nothing of `copy` and `language`: they can run side by side."""
    fonts = trained_fonts()
    plain = (*TRAINED, *["strings"] * 4)
    return {
        "dense": Stage(
            Mix("dense", (*plain, *["paragraph"] * 12), fonts, ONE, tiles=12, questions=1),
            {"dense": 1.0},
            steps=12_000,
            learning_rate=4e-3,
        ),
        "copy": Stage(
            Mix("copy", ("single",), fonts, ONE, tiles=48, questions=2, kinds=("transcribe", "place"), pictures=False),
            {"language": 1.0},
            steps=4_000,
            learning_rate=3e-3,
        ),
        "language": Stage(
            Mix("language", plain, fonts, (*ONE * 4, *FEW), 16, 8, 0.05, (*KINDS, "page"), pictures=False),
            {"language": 1.0},
            steps=12_000,
            learning_rate=3e-3,
            after=("copy",),
        ),
        "align": Stage(
            Mix("align", TRAINED, fonts, FEW, tiles=20, questions=6, chat=0.02),
            {"dense": 0.5, "rows": 1.0, "answers": 0.2},
            steps=4_000,
            learning_rate=1.5e-3,
            after=("language", "dense"),
        ),
        "answers": Stage(
            Mix("answers", plain, fonts, (*ONE * 4, *FEW), tiles=20, questions=8, chat=0.04),
            {"answers": 1.0},
            steps=12_000,
            learning_rate=2e-3,
            after=("align",),
            frozen=("reader.vision_tower", "head", "oracle"),
        ),
        "joint": Stage(
            Mix("joint", TRAINED, fonts, (*FEW * 3, *MANY), tiles=24, questions=8, chat=0.05),
            {"answers": 1.0},
            steps=10_000,
            learning_rate=5e-4,
            after=("answers",),
        ),
    }


PARTS: dict[str, tuple[str, ...]] = {
    "dense": ("reader.vision_tower", "head"),
    "copy": ("reader.language_model", "oracle"),
    "language": ("reader.language_model", "oracle"),
}
"""What a stage leaves untouched is not taken from it: the prefixes of the weights that these train."""
